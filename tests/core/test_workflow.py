"""Goals, tolerances, presets, plans and checkpoint directories: numbers only."""

import logging
import math
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nlsq_dask._errors import InputError
from nlsq_dask.core import memory_budget, workflow
from nlsq_dask.core.goals import GOAL_RULES, TOLERANCE_TIERS
from nlsq_dask.core.workflow import (
    WORKFLOW_PRESETS,
    Machine,
    MemoryBudget,
    MemoryBudgetSelector,
    OptimizationGoal,
    Problem,
    calculate_adaptive_tolerances,
    create_checkpoint_directory,
    goal_table,
    plan_workflow,
    tolerance_table,
    workflow_table,
)

GOALS = (None, *OptimizationGoal)

counts = st.integers(1, 10**13)
small_counts = st.integers(1, 200)
limits = st.floats(0.05, 1e5)
goals = st.sampled_from(GOALS)


# Goals and tolerances


@pytest.mark.parametrize("name", ["fast", "FAST", "Fast", OptimizationGoal.FAST])
def test_goals_are_read_in_any_case(name):
    assert OptimizationGoal.parse(name) is OptimizationGoal.FAST


def test_no_goal_is_none():
    assert OptimizationGoal.parse(None) is None


def test_global_is_a_synonym_of_robust():
    assert GOAL_RULES[OptimizationGoal.GLOBAL] == GOAL_RULES[OptimizationGoal.ROBUST]
    assert set(GOAL_RULES) == set(GOALS)


@pytest.mark.parametrize("value", ["fastest", "", 3, True, ["fast"]])
def test_unknown_goals_are_refused(value):
    for call in (
        lambda: OptimizationGoal.parse(value),
        lambda: calculate_adaptive_tolerances(10, value),
        lambda: MemoryBudgetSelector().select(10, 2, goal=value),
        lambda: plan_workflow(Problem(10, 2), Machine(), goal=value),
    ):
        with pytest.raises(ValueError, match=r"^goal = ") as caught:
            call()
        message = str(caught.value)
        assert repr(value) in message
        assert all(repr(goal.value) in message for goal in OptimizationGoal)


TOLERANCES = [
    # rows, none, FAST, QUALITY
    (1, 1e-12, 1e-10, 1e-12),
    (999, 1e-12, 1e-10, 1e-12),
    (1_000, 1e-10, 1e-9, 1e-12),
    (9_999, 1e-10, 1e-9, 1e-12),
    (10_000, 1e-9, 1e-8, 1e-10),
    (99_999, 1e-9, 1e-8, 1e-10),
    (100_000, 1e-8, 1e-7, 1e-9),
    (999_999, 1e-8, 1e-7, 1e-9),
    (1_000_000, 1e-7, 1e-6, 1e-8),
    (5_000_000, 1e-7, 1e-6, 1e-8),
    (9_999_999, 1e-7, 1e-6, 1e-8),
    (10_000_000, 1e-6, 1e-5, 1e-7),
    (99_999_999, 1e-6, 1e-5, 1e-7),
    (100_000_000, 1e-5, 1e-5, 1e-6),
    (10**13, 1e-5, 1e-5, 1e-6),
]


@pytest.mark.parametrize(("n", "plain", "fast", "quality"), TOLERANCES)
def test_adaptive_tolerances(n, plain, fast, quality):
    expected = dict.fromkeys(GOALS, plain)
    expected |= {OptimizationGoal.FAST: fast, OptimizationGoal.QUALITY: quality}
    for goal, tolerance in expected.items():
        wanted = {"gtol": tolerance, "ftol": tolerance, "xtol": tolerance}
        assert calculate_adaptive_tolerances(n, goal) == wanted
        if goal is not None:
            assert calculate_adaptive_tolerances(n, goal.value) == wanted


@given(n=counts, more=counts, goal=goals)
def test_more_rows_never_tighten_tolerances(n, more, goal):
    few, many = (calculate_adaptive_tolerances(rows, goal)["ftol"] for rows in (n, n + more))
    assert few <= many


@pytest.mark.parametrize("value", [0, -3, 2.5, math.nan, "many"])
def test_tolerances_need_a_number_of_rows(value):
    with pytest.raises(ValueError, match=r"^n_points = ") as caught:
        calculate_adaptive_tolerances(value)
    assert repr(value) in str(caught.value)


# Presets and plans

PRESETS = [
    # name, strategy, tolerance, starts, checkpoints
    ("auto", "standard", 1e-9, 1, False),
    ("standard", "standard", 1e-8, 1, False),
    ("quality", "standard", 1e-10, 20, False),
    ("fast", "standard", 1e-6, 1, False),
    ("large_robust", "chunked", 1e-8, 10, False),
    ("streaming", "streaming", 1e-7, 1, False),
    ("hpc_distributed", "streaming", 1e-6, 1, True),
]


def plan(name="auto", goal=None, n=50_000, limit=8.0, **kwargs):
    sizes = {k: kwargs.pop(k) for k in ("lazy", "row_wise", "broadcasts") if k in kwargs}
    return plan_workflow(Problem(n, 4, **sizes), Machine(limit), name, goal, **kwargs)


@pytest.mark.parametrize(("name", "strategy", "tolerance", "starts", "checkpoint"), PRESETS)
def test_presets(name, strategy, tolerance, starts, checkpoint):
    made = plan(name)
    assert made.workflow == name
    assert made.strategy == strategy
    assert made.tolerances == dict.fromkeys(("gtol", "ftol", "xtol"), tolerance)
    assert made.n_starts == starts
    assert made.checkpoint is checkpoint
    assert (made.config is None) == (strategy == "standard")


def test_presets_are_the_table():
    assert list(WORKFLOW_PRESETS) == [name for name, *_ in PRESETS]
    tiers = {tolerance for _, tolerance in TOLERANCE_TIERS}
    assert {preset.tolerance for preset in WORKFLOW_PRESETS.values()} <= {None, *tiers}
    with pytest.raises(TypeError):
        WORKFLOW_PRESETS["mine"] = WORKFLOW_PRESETS["auto"]


@pytest.mark.parametrize("value", ["best", "", 3, ["auto"]])
def test_unknown_workflows_are_refused(value):
    with pytest.raises(ValueError, match=r"^workflow = ") as caught:
        plan(value)
    message = str(caught.value)
    assert repr(value) in message
    assert all(repr(name) in message for name in WORKFLOW_PRESETS)


@pytest.mark.parametrize(
    ("limit", "strategy"), [(16.0, "standard"), (1.0, "chunked"), (0.2, "streaming")]
)
def test_auto_is_what_the_selector_selects(limit, strategy):
    made = plan_workflow(Problem(10_000_000, 10), Machine(limit, threads=2), "auto")
    selected = MemoryBudgetSelector().select(10_000_000, 10, 1, limit, threads=2)
    assert (made.strategy, made.config) == selected
    assert made.strategy == strategy
    assert made.budget == MemoryBudget.compute(10_000_000, 10, memory_limit_gb=limit)


@pytest.mark.parametrize(
    ("name", "goal", "strategy", "tolerance", "starts"),
    [
        ("auto", "fast", "standard", 1e-8, 1),
        ("auto", "robust", "standard", 1e-9, 10),
        ("auto", "global", "standard", 1e-9, 10),
        ("auto", "memory_efficient", "chunked", 1e-9, 1),
        ("auto", "quality", "standard", 1e-10, 10),
        ("standard", "quality", "standard", 1e-9, 10),
        ("standard", "memory_efficient", "chunked", 1e-8, 1),
        ("quality", "robust", "standard", 1e-10, 20),
        ("quality", "fast", "standard", 1e-9, 1),
        ("quality", "quality", "standard", 1e-12, 20),
        ("quality", "memory_efficient", "chunked", 1e-10, 20),
        ("large_robust", "fast", "chunked", 1e-7, 1),
        ("streaming", "robust", "streaming", 1e-7, 10),
        ("hpc_distributed", "fast", "streaming", 1e-5, 1),
    ],
)
def test_goals_move_presets(name, goal, strategy, tolerance, starts):
    made = plan(name, goal)
    assert made.goal is OptimizationGoal.parse(goal)
    assert (made.strategy, made.n_starts) == (strategy, starts)
    assert set(made.tolerances.values()) == {tolerance}


@pytest.mark.parametrize("name", WORKFLOW_PRESETS)
@pytest.mark.parametrize("goal", GOALS)
def test_what_is_written_explicitly_wins(name, goal):
    made = plan(name, goal, n_starts=7, tolerances={"ftol": 1e-3, "xtol": None}, strategy="chunked")
    usual = plan(name, goal).tolerances
    assert made.n_starts == 7
    assert made.tolerances == {**usual, "ftol": 1e-3, "xtol": None}
    assert made.strategy == "chunked"


@pytest.mark.parametrize("strategy", [None, "auto"])
def test_naming_no_strategy_leaves_it_to_the_preset(strategy):
    assert plan("large_robust", strategy=strategy).strategy == "chunked"


def test_unknown_strategy_is_refused():
    with pytest.raises(ValueError, match=r"strategy = 'swift'.*'streaming'"):
        plan(strategy="swift")


@pytest.mark.parametrize("value", [0, -1, 2.5, math.nan, True])
def test_number_of_starts_is_a_count(value):
    with pytest.raises(ValueError, match=r"^n_starts = ") as caught:
        plan(n_starts=value)
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize("name", ["auto", "streaming", "hpc_distributed"])
def test_lazy_data_are_streamed_whatever_their_size(name):
    made = plan(name, "memory_efficient", n=10, lazy=True)
    assert made.strategy == "streaming"


@pytest.mark.parametrize("name", ["standard", "quality", "fast", "large_robust"])
def test_workflows_in_memory_refuse_lazy_data(name):
    with pytest.raises(ValueError, match=f"^workflow = '{name}'.*'auto' or 'streaming'"):
        plan(name, lazy=True)
    assert plan(name, lazy=True, strategy="streaming").strategy == "streaming"


@pytest.mark.parametrize("strategy", ["standard", "chunked"])
def test_strategies_in_memory_refuse_lazy_data(strategy):
    with pytest.raises(ValueError, match=f"^strategy = '{strategy}'"):
        plan("auto", lazy=True, strategy=strategy)


@pytest.mark.parametrize(
    ("name", "strategy", "start"),
    [
        ("standard", None, "workflow = 'standard'"),
        ("quality", None, "workflow = 'quality'"),
        ("auto", "standard", "strategy = 'standard'"),
    ],
)
def test_standard_refuses_more_rows_than_memory_holds(name, strategy, start):
    # 50,000 rows of x and y take 0.8 MB.
    with pytest.raises(ValueError, match=f"^{start}.*0.0008 GB.*'streaming'"):
        plan(name, limit=0.001, strategy=strategy)
    assert plan(name, limit=0.0011, strategy=strategy).strategy == "standard"


@pytest.mark.parametrize(
    ("goal", "limit", "strategy"),
    [
        (None, 8.0, "standard"),
        (None, 0.1, "standard"),  # the peak exceeds, the rows fit
        ("memory_efficient", 8.0, "standard"),
        (None, 0.001, "streaming"),  # which the model's own check refuses
    ],
)
def test_a_model_of_all_rows_keeps_them_together(goal, limit, strategy):
    assert plan("auto", goal, limit=limit, row_wise=False).strategy == strategy


def test_small_coordinates_are_not_expanded():
    assert plan("auto", broadcasts=True).strategy == "chunked"
    assert plan("standard", broadcasts=True).strategy == "standard"
    assert plan("auto", broadcasts=True, row_wise=False).strategy == "standard"


@given(
    name=st.sampled_from(list(WORKFLOW_PRESETS)),
    goal=goals,
    n=counts,
    p=small_counts,
    limit=limits,
    lazy=st.booleans(),
    row_wise=st.booleans(),
    broadcasts=st.booleans(),
)
def test_every_plan_is_whole_or_refused(name, goal, n, p, limit, lazy, row_wise, broadcasts):
    problem = Problem(n, p, lazy=lazy, row_wise=row_wise, broadcasts=broadcasts)
    in_memory = WORKFLOW_PRESETS[name].strategy in ("standard", "chunked")
    try:
        made = plan_workflow(problem, Machine(limit), name, goal)
    except InputError:
        fits = MemoryBudget.compute(n, p, memory_limit_gb=limit).data_fits
        assert in_memory and (lazy or not fits)
        return
    assert not (lazy and in_memory)
    assert (made.config is None) == (made.strategy == "standard")
    assert made.strategy in made.summary and made.reason in made.summary


def test_the_summary_is_one_line_with_the_numbers_of_the_decision(caplog):
    made = plan_workflow(Problem(10**7, 10), Machine(1.0, threads=2), "large_robust", "quality")
    with caplog.at_level(logging.INFO, "nlsq_dask"):
        logging.getLogger("nlsq_dask").info("%s", made.summary)
    (line,) = caplog.messages
    assert "\n" not in line
    for part in ("large_robust", "quality", "chunked", "0.75", "1 GB", "0.16", "0.8", "1.3"):
        assert part in line
    for part in ("262144 rows", "2 threads", "1e-09", "10 starts"):
        assert part in line
    assert plan("hpc_distributed").summary.endswith("with checkpoints")


@pytest.mark.parametrize(
    ("name", "limit", "n", "part"),
    [
        ("auto", 16.0, 10**7, "peak 1.3 GB <= 12 GB"),
        ("auto", 1.0, 10**7, "peak 1.3 GB > 0.75 GB"),
        ("auto", 0.2, 10**7, "data 0.16 GB > 0.15 GB"),
        ("large_robust", 16.0, 10**7, "named by the workflow"),
    ],
)
def test_the_reason_of_a_strategy(name, limit, n, part):
    assert plan_workflow(Problem(n, 10), Machine(limit), name).reason == part


def test_the_goal_is_a_reason():
    assert "goal" in plan("auto", "memory_efficient").reason
    assert "goal" in plan("standard", "memory_efficient").reason


@pytest.mark.parametrize(
    ("table", "words", "n_rows"),
    [
        (workflow_table(), [f"`{name}`" for name in WORKFLOW_PRESETS], len(WORKFLOW_PRESETS)),
        (goal_table(), [f"`{goal.name}`" for goal in OptimizationGoal], len(OptimizationGoal)),
        (tolerance_table(), ["1e-12", "1e-05", "fewer than 1e+03"], len(TOLERANCE_TIERS)),
    ],
)
def test_tables_are_rendered(table, words, n_rows):
    lines = table.splitlines()
    assert len(lines) == n_rows + 2
    assert len({len(line) for line in lines}) == 1
    assert len({line.count("|") for line in lines}) == 1
    assert set(lines[1]) == {"|", "-", " "}
    assert all(word in table for word in words)


def test_workflow_table_has_a_row_of_each_preset():
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in workflow_table().splitlines()
    ]
    assert rows[3][:5] == ["`standard`", "standard", "1e-08", "1", "no"]
    assert rows[-1][:5] == ["`hpc_distributed`", "streaming", "1e-06", "1", "yes"]


# Checkpoint directories


def test_checkpoint_directories_of_one_second_are_distinct(tmp_path, monkeypatch):
    class Frozen(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime(2031, 2, 3, 4, 5, 6, tzinfo=tz)

    monkeypatch.setattr(workflow, "datetime", Frozen)
    made = [create_checkpoint_directory(tmp_path / "a" / "b") for _ in range(12)]
    assert len(set(made)) == 12
    assert all(Path(path).is_dir() and Path(path).parent == tmp_path / "a" / "b" for path in made)
    assert made[0].endswith("20310203_040506")


def test_checkpoint_directory_is_made_below_the_current_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = datetime.now(UTC).replace(microsecond=0)
    path = create_checkpoint_directory()
    assert Path(path).is_absolute()
    assert Path(path).parent == tmp_path / "nlsq_checkpoints"
    assert list(Path(path).iterdir()) == []
    stamp = datetime.strptime(Path(path).name, "checkpoint_%Y%m%d_%H%M%S").replace(tzinfo=UTC)
    assert before <= stamp <= datetime.now(UTC)
    assert create_checkpoint_directory("elsewhere") != path
    assert (tmp_path / "elsewhere").is_dir()


def test_checkpoint_directory_in_a_file_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        create_checkpoint_directory(tmp_path / "file")


def test_importing_the_workflow_loads_neither_jax_nor_dask():
    code = (
        "import sys, nlsq_dask.core.workflow as w; w.MemoryBudget.compute(n_points=10, n_params=2);"
        "sys.exit(','.join({'jax', 'dask', 'scipy', 'zarr'} & set(sys.modules)) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr


def test_the_module_re_exports_the_budget():
    assert workflow.MemoryBudget is memory_budget.MemoryBudget
    assert set(workflow.__all__) <= set(dir(workflow))
