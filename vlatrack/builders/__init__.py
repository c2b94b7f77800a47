"""The only place where a spec becomes objects."""
