"""The tiny base model: its architecture, its tokenizer's text, and the shipped weights."""
