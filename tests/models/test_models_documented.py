"""Every model is on the page of models, explains itself, and its example runs."""

import doctest
import re
from pathlib import Path

import pytest

from nlsq_dask import models
from nlsq_dask.models import base, curves, peaks

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "models.md"
DIRECTIVE = re.compile(r"^\.\. autoclass:: (\w+)$", re.MULTILINE)


def test_page_lists_every_model_once_and_nothing_else():
    assert sorted(DIRECTIVE.findall(PAGE.read_text(encoding="utf-8"))) == sorted(models.__all__)


@pytest.mark.parametrize("name", models.__all__)
def test_model_documents_its_parameters_and_an_example(name):
    text = vars(getattr(models, name))["__doc__"]
    for section in ("Parameters", "Attributes", "Examples"):
        assert re.search(rf"^ *{section}\n *-+$", text, re.MULTILINE)
    for parameter in getattr(getattr(models, name), "base_names", ()):
        assert parameter in text


@pytest.mark.parametrize("module", [base, curves, peaks], ids=lambda module: module.__name__)
def test_examples_run(module):
    failed, attempted = doctest.testmod(module)
    assert attempted
    assert not failed
