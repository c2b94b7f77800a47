"""From a journal to the trackers: the delivery process and its state."""
