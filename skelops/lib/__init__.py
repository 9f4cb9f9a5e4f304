"""Compiled parts, put here by setup.py; build.json says what was built and why the rest was not."""
