"""Built-in protocols, one file each."""
