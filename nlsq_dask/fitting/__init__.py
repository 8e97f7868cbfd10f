"""The course of a fit: from the arguments to a job, an engine, a search and a result."""
