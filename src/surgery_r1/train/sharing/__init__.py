"""Shared frames in TRL's trainers: packs of rows in SFT, groups of completions in RFT."""
