"""What a fit will cost: readings, bytes, memory and time."""
