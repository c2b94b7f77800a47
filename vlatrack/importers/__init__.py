"""Trainings of other systems as runs."""
