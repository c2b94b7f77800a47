"""Policies that act: from an observation to an action chunk."""
