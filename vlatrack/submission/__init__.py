"""Trainings as jobs of a cluster: what a job is to do, how it is submitted, and how it goes on when interrupted."""
