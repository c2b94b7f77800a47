"""Autoregressive backbones behind one protocol."""
