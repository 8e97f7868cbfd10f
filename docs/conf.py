"""Configuration of the documentation."""

from importlib.metadata import version as installed_version

project = "nlsq_dask"
author = "The nlsq_dask developers"
copyright = "2026, The nlsq_dask developers"
version = release = installed_version("nlsq_dask")

extensions = ["myst_parser", "numpydoc", "sphinx.ext.autodoc", "sphinx.ext.mathjax"]
exclude_patterns = ["_build"]

# Type hints are in the docstrings already, with shapes and units.
autodoc_typehints = "none"
numpydoc_show_class_members = False

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = f"nlsq_dask {version}"
