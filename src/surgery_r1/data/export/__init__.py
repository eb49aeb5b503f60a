"""Datasets for other tools: Parquet with one row a frame, and the conversations that TRL trains on."""
