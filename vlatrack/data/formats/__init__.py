"""Dataset formats, one folder or file each."""
