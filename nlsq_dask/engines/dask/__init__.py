"""The streaming engine: groups of neighbouring chunks, read and summed by tasks of Dask."""
