"""Simulators behind one protocol, and the recorder of demonstrations."""
