"""Rollouts from a vLLM server: asked for as tokens, given weights through files, and checked at every step."""
