"""Benchmarks of the ops: ``python -m benchmarks --json FILE``."""
