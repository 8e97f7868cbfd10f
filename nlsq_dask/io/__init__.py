"""The data that a user passes: sources, observations, and their blocks of rows."""
