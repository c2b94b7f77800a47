"""One run from its spec to its report: directory, manifest, seeds, and the wiring of everything else."""
