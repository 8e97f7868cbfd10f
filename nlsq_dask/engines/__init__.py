"""Engines, which answer questions of all rows: in threads of this process, or in Dask tasks."""
