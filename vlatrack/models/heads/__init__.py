"""Heads on the backbone's hidden states."""
