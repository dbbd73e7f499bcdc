"""Compile an ONNX model and a recipe to a smaller, faster bundle, and prove it."""
