"""Sweeps: many runs of one experiment with other settings, chosen and ended early by Optuna."""
