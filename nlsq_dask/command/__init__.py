"""The command ``nlsq-dask``."""
