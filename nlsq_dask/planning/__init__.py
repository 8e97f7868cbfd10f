"""The cost of a fit before it runs: passes, bytes, memory and time."""
