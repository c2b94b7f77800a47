"""Decoder families of transformers, with our token ids appended to their vocabulary."""
