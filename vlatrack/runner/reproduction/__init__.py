"""A recorded run once more, from its own code, packages and data, and what came of it."""
