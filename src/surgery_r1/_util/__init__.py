"""What every room uses and no reader needs to know: files, TOML, folders, threads."""
