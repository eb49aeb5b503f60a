"""Rationales of chain-of-thought rows: who writes them, and what every one must pass."""
