"""From what a user passes to blocks of rows: sources and the arithmetic of chunks."""
