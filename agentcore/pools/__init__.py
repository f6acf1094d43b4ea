"""Worker pools: one file for each kind."""
