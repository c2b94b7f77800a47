"""Loss terms, one file each, and the token losses they are computed from."""
