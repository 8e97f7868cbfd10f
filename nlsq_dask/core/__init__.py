"""Decisions and p × p mathematics: NumPy and the standard library only."""
