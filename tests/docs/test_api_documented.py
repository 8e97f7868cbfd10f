"""The API reference and the package's face name the same things, and each explains itself."""

import re
from pathlib import Path

import pytest

import nlsq_dask

API_PAGE = Path(__file__).parents[2] / "docs" / "reference" / "api.md"
DIRECTIVE = re.compile(r"^\.\. auto(?:function|class|exception|data):: (\w+)$", re.MULTILINE)
# Strings and the like have no docstring of their own.
EXPLAINED = sorted(name for name in nlsq_dask.__all__ if callable(getattr(nlsq_dask, name)))


def test_api_page_lists_every_exported_name_once_and_nothing_else():
    listed = DIRECTIVE.findall(API_PAGE.read_text(encoding="utf-8"))
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
