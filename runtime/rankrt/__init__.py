"""Load a bundle and run it. Imports numpy, nothing else."""
