"""The trackers, one file or folder each."""
