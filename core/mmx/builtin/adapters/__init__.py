"""Built-in adapters, one file each."""
