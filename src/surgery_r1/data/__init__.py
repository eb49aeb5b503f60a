"""Data: label folders in, a dataset folder out, and the same dataset opened again."""
