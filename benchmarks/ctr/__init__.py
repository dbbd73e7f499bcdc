"""Click models: rankc against what people would do instead. `python -m benchmarks.ctr.run`."""
