"""One block of rows, in JAX: the user's model, the sums over tiles of rows, and loss functions."""
