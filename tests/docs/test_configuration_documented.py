"""The configuration page shows the tables that the package works by, and documents their names."""

import re
from pathlib import Path

import pytest

from nlsq_dask.core import workflow

CONFIGURATION_PAGE = Path(__file__).parents[2] / "docs" / "reference" / "configuration.md"
TABLE = re.compile(r"(?:^\|.*\|$\n)+", re.MULTILINE)
SECTION = re.compile(r"^## (.+)\n", re.MULTILINE)
DIRECTIVE = re.compile(r"^\.\. auto(?:function|class):: (\w+)$", re.MULTILINE)


def sections():
    """Text below each heading of the page."""
    _, *parts = SECTION.split(CONFIGURATION_PAGE.read_text(encoding="utf-8"))
    return dict(zip(parts[::2], parts[1::2], strict=True))


@pytest.mark.parametrize(
    ("section", "table"),
    [
        ("Workflows", workflow.workflow_table),
        ("Goals", workflow.goal_table),
        ("Tolerances", workflow.tolerance_table),
    ],
)
def test_table_is_the_one_that_the_package_works_by(section, table):
    assert TABLE.findall(sections()[section]) == [table() + "\n"]


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
