"""Kernels in JAX: sums over the rows of a buffer, and values of a model on rows."""
