"""Training: rows and prompts for TRL's trainers, which are called and not copied."""
