"""The live dashboard: pages of a runs folder, served on this machine."""
