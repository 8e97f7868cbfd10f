"""Configuration of the documentation."""

import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version as installed_version
from pathlib import Path

from sphinx.application import Sphinx

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from from_package import filled  # noqa: E402  # a module of this folder

project = "nlsq_dask"
author = "The nlsq_dask developers"
copyright = "2026, The nlsq_dask developers"
version = release = installed_version("nlsq_dask")

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.intersphinx",
    "sphinx.ext.mathjax",
]
exclude_patterns = ["_build"]

# Type hints are in the docstrings already, with shapes and units.
autodoc_typehints = "none"
numpydoc_show_class_members = False
# Types become links where another project's list of names is at hand. The words that numpydoc links
# to glossaries by itself are linked to classes: a class that is not found is no warning.
numpydoc_xref_param_type = True
numpydoc_xref_aliases = {
    "array_like": "numpy.typing.ArrayLike",
    "array": "numpy.ndarray",
    "bool": "bool",
    "boolean": "bool",
    "callable": "collections.abc.Callable",
    "Client": "distributed.Client",
    "dict": "dict",
    "Figure": "matplotlib.figure.Figure",
    "float": "float",
    "int": "int",
    "iterable": "collections.abc.Iterable",
    "list": "list",
    "mapping": "collections.abc.Mapping",
    "sequence": "collections.abc.Sequence",
    "string": "str",
    "tuple": "tuple",
}
numpydoc_xref_ignore = {"arrays", "default", "of", "optional", "or", "shape", "text"}

myst_enable_extensions = ["deflist", "dollarmath"]
myst_heading_anchors = 3

smartquotes = False  # messages and options are shown as they are typed

html_theme = "furo"
html_title = f"nlsq_dask {version}"

OTHERS = {
    "python": "https://docs.python.org/3/",
    "numpy": "https://numpy.org/doc/stable/",
    "scipy": "https://docs.scipy.org/doc/scipy/",
    "dask": "https://docs.dask.org/en/stable/",
    "distributed": "https://distributed.dask.org/en/stable/",
    "jax": "https://docs.jax.dev/en/latest/",
    "xarray": "https://docs.xarray.dev/en/stable/",
    "zarr": "https://zarr.readthedocs.io/en/stable/",
    "matplotlib": "https://matplotlib.org/stable/",
}
#: Seconds that a server may take to answer.
PATIENCE = 5


def inventory(name: str) -> Path | None:
    """The file of a project's names: fetched, or else of an earlier build; None without either.

    Sphinx warns of a list that it cannot fetch, and a warning ends the build. So lists are fetched
    here, and a machine without a network builds the same pages with fewer links.
    """
    kept = HERE / "_build" / "inventories" / f"{name}.inv"
    try:
        with urllib.request.urlopen(f"{OTHERS[name]}objects.inv", timeout=PATIENCE) as answer:
            content = answer.read()
    except (OSError, urllib.error.URLError):
        return kept if kept.exists() else None
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_bytes(content)
    return kept


with ThreadPoolExecutor(len(OTHERS)) as pool:
    found = dict(zip(OTHERS, pool.map(inventory, OTHERS), strict=True))
intersphinx_mapping = {
    name: (OTHERS[name], str(path)) for name, path in found.items() if path is not None
}


def setup(app: Sphinx) -> None:
    """Fill in what pages take from the package."""
    app.connect("source-read", fill_in)


def fill_in(_app: Sphinx, _name: str, source: list[str]) -> None:
    """Replace the text of a page, the one entry of `source`."""
    source[0] = filled(source[0])
