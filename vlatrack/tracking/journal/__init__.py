"""The journal of a run: writing it, reading it, and what it tells."""
