"""What may be asked of rows; the answers of two sets of rows add."""
