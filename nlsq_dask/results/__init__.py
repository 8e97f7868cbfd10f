"""What a fit gives: numbers, reports, tables, plots, files, and the fitted model."""
