"""From the training process to the trackers: journal, delivery, one file per backend."""
