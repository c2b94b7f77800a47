"""A run from its spec to its report: directory, manifest, execution and end."""
