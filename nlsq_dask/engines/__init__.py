"""How blocks of rows become one sum: in this process, or as Dask tasks."""
