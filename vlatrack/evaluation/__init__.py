"""Evaluation of a policy on demonstrations it was not trained on."""
