"""Who answers questions of all rows: threads of this process, or the tasks of Dask."""
