"""Settings of every test."""

import os

# Before torch is imported: threads that wait by spinning starve the processes that tests start.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
