"""Convolutional nets: accuracy and time of low rank, and where a naive rewrite is slower."""
