"""Label folders and drawn scenes: where samples come from."""
