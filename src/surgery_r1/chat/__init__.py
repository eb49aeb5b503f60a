"""Chat servers that speak the OpenAI protocol: which may be sent frames, and how they are asked."""
