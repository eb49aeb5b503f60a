"""A language model that writes reasoning: behind an OpenAI-compatible endpoint, on this machine unless allowed."""
