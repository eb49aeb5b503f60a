"""Shared frames against stock TRL and transformers, side by side in one run (``surgery-r1 bench``)."""
