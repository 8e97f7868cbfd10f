"""What a user passes: sources, observations, and the blocks of rows that are made of them."""
