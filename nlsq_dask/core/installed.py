"""Versions of Python and of the libraries that a fit uses, or would use if they were installed."""

from __future__ import annotations

import platform
import sys
from importlib import metadata

#: Libraries that the package needs, as in its list of dependencies.
REQUIRED = (
    "numpy",
    "scipy",
    "jax",
    "jaxlib",
    "dask",
    "distributed",
    "zarr",
    "fsspec",
    "cloudpickle",
    "psutil",
)

#: Libraries whose arrays, files or pictures the package takes or makes.
OPTIONAL = (
    "matplotlib",
    "xarray",
    "pandas",
    "h5py",
    "h5netcdf",
    "netCDF4",
    "obstore",
    "s3fs",
    "gcsfs",
    "adlfs",
    "pint",
    "astropy",
    "bokeh",
    "lmfit",
)


def library_versions() -> dict[str, str]:
    """Version of each library by its name; "not installed" for a library that is missing."""
    own: str = sys.modules["nlsq_dask"].__version__
    found = {"nlsq_dask": own, "python": platform.python_version()}
    return found | {name: _version(name) for name in (*REQUIRED, *OPTIONAL)}


def machine() -> str:
    """Operating system, its release, and the processor's architecture."""
    return f"{platform.system()} {platform.release()} on {platform.machine()}"


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"
