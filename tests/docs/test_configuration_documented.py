"""The page of presets asks for the tables that the package works by, and documents their names."""

import re
from pathlib import Path

import pytest

from nlsq_dask.core import workflow

CONFIGURATION_PAGE = Path(__file__).parents[2] / "docs" / "reference" / "configuration.md"
DIRECTIVE = re.compile(r"^\.\. auto(?:function|class):: (\w+)$", re.MULTILINE)


@pytest.mark.parametrize("table", ["workflows", "goals", "tolerances"])
def test_the_page_asks_for_each_table_and_writes_none(table):
    page = CONFIGURATION_PAGE.read_text(encoding="utf-8")
    assert f"<!-- from the package: {table} -->" in page
    assert "1e-" not in page.replace("1e-8, as in SciPy", "")


def test_every_public_name_of_the_workflow_system_is_documented_once():
    listed = DIRECTIVE.findall(CONFIGURATION_PAGE.read_text(encoding="utf-8"))
    assert sorted(listed) == [
        "BlockConfig",
        "MemoryBudget",
        "MemoryBudgetSelector",
        "OptimizationGoal",
        "calculate_adaptive_tolerances",
        "create_checkpoint_directory",
    ]
    assert {getattr(workflow, name).__module__.split(".")[0] for name in listed} == {"nlsq_dask"}
    assert set(listed) <= set(workflow.__all__)
