"""What runs have in common and what not: settings, metrics, data, code. Imports neither torch nor a tracker."""
