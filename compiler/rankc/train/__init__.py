"""Training inside the compiler: ONNX run by torch, the loop, and hooks of trainable methods.

The only package that imports torch; it is imported when a recipe trains, and not before.
"""
