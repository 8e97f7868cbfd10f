"""Benchmarks: what the package promises in speed and memory, measured (see README.md)."""
