"""Contracts of each kind of extension (docs/extending.md), as tests to subclass, and an example tracker."""
