"""An episode to look at: as a video, or in Rerun."""
