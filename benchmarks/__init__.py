"""Measurements of the whole product over its real doors: `python -m benchmarks`."""
