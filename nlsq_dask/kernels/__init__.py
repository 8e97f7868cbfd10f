"""Rows to sums, in JAX: what all rows of a buffer contribute, and values on them."""
