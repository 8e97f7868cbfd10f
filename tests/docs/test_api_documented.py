"""The API reference and the package's face name the same things, and each explains itself."""

import doctest
import importlib
import re
from pathlib import Path

import pytest

import nlsq_dask

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"
DIRECTIVE = re.compile(r"^\.\. auto(?:function|class|exception|data):: (\w+)$", re.MULTILINE)
PACKAGE = Path(nlsq_dask.__file__).parent
# Modules whose docstrings have examples. Those of the ready-made models run with their own tests.
WITH_EXAMPLES = sorted(
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    for path in PACKAGE.rglob("*.py")
    if ">>> " in path.read_text("utf-8") and path.parent.name != "models"
)
# Strings and the like have no docstring of their own.
EXPLAINED = sorted(name for name in nlsq_dask.__all__ if callable(getattr(nlsq_dask, name)))


def test_reference_lists_every_exported_name_once_and_nothing_else():
    pages = (REFERENCE / name for name in ("api.md", "errors.md"))
    listed = [name for page in pages for name in DIRECTIVE.findall(page.read_text("utf-8"))]
    exported = set(nlsq_dask.__all__) - {"__version__"}
    assert sorted(listed) == sorted(exported)


@pytest.mark.parametrize("name", EXPLAINED)
def test_exported_name_has_a_docstring_of_its_own(name):
    # `__dict__` and not `__doc__`: a class would otherwise inherit its parent's text.
    thing = getattr(nlsq_dask, name)
    text = vars(thing).get("__doc__") if isinstance(thing, type) else thing.__doc__
    assert text
    assert text.strip()


@pytest.mark.parametrize("name", ["fit", "fit_each", "fit_models", "curve_fit"])
def test_function_documents_arguments_result_errors_and_an_example(name):
    text = getattr(nlsq_dask, name).__doc__
    missing = [
        section
        for section in ("Parameters", "Returns", "Raises", "Examples")
        if not re.search(rf"^ *{section}\n *-+$", text, re.MULTILINE)
    ]
    assert not missing


@pytest.mark.slow
@pytest.mark.parametrize("module", WITH_EXAMPLES)
def test_the_examples_of_docstrings_print_what_they_show(module):
    assert doctest.testmod(importlib.import_module(module)).failed == 0
