"""Imports what other systems logged, as runs."""
