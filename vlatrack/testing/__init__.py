"""For those who write a tracker, a simulator or a dataset format: their contracts as tests, and an example tracker."""
