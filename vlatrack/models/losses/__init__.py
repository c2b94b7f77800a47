"""The documented losses and what they are summed from."""
