"""The user's function: how it is called and traced, named, and found to be row-wise."""
