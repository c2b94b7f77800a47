"""Decoder families of transformers, with our ids behind their own vocabulary."""
