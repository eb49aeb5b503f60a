"""Ours against the plain way, side by side in one run (``surgery-r1 bench``)."""
