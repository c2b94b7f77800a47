"""The experiment YAML: its models, how it is loaded, and its identity."""
