"""The doors: what a user calls."""
