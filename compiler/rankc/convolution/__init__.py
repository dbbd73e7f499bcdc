"""Convolutions as linear maps of patches, and the ways to write one as a chain of smaller ones."""
