"""Built-in fusions, one file each."""
