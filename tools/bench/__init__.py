"""Benchmarks: `python -m tools.bench.NAME --json FILE`; `make bench` runs them all, one after the other.

A benchmark is a module whose name begins with a letter; what they share begins with an underscore.
"""
