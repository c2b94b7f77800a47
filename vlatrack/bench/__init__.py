"""Benchmarks of vlatrack on this machine."""
