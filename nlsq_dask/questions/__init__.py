"""Questions about rows. The answers of two sets of rows add up to the answer of both."""
