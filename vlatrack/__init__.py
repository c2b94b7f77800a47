"""vlatrack: train, evaluate and track vision-language-action models from one YAML."""

__version__ = "0.1.0"
