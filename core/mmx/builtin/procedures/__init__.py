"""Built-in procedures, one file each."""
