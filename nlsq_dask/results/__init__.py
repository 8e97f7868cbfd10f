"""Results of a fit: numbers, reports, tables, plots, files, and the fitted model."""
