"""Datasets for other tools: Parquet with one row a frame, and the rows that other trainers take."""
