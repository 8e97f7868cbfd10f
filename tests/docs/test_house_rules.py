"""A house rule that no tool checks: values of one type travel by name."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import nlsq_dask

PACKAGE = Path(nlsq_dask.__file__).parent

# Most values of one type that a call passes by position.
MOST = 3

# Types of the parameters that take positions.
Types = list[str]


def types_of(function: ast.FunctionDef) -> Types:
    """Types without None, which a value that is passed seldom is."""
    taken = function.args.posonlyargs + function.args.args
    own = [p for p in taken if p.arg not in ("self", "cls")]
    return [ast.unparse(p.annotation) if p.annotation else p.arg for p in own]


def types_of_fields(definition: ast.ClassDef) -> Types:
    """Types of what makes an instance: an own ``__init__``, or the fields of a dataclass."""
    for item in definition.body:
        if isinstance(item, ast.FunctionDef) and item.name == "__init__":
            return types_of(item)
    if any("kw_only" in ast.unparse(decorator) for decorator in definition.decorator_list):
        return []
    return [ast.unparse(f.annotation) for f in definition.body if isinstance(f, ast.AnnAssign)]


def definitions(tree: ast.Module) -> dict[str, Types]:
    """Types of all functions, methods and classes of a file, by name."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            found[node.name] = types_of(node)
        elif isinstance(node, ast.ClassDef):
            found[node.name] = types_of_fields(node)
    return found


def long_calls(trees: dict[str, ast.Module]) -> Iterator[str]:
    """Calls that pass more values of one type by position than the rule allows."""
    own = {path: definitions(tree) for path, tree in trees.items()}
    everywhere = {name: types for defined in own.values() for name, types in defined.items()}
    for path, tree in trees.items():
        known = everywhere | own[path]
        for call in ast.walk(tree):
            if not isinstance(call, ast.Call) or any(isinstance(a, ast.Starred) for a in call.args):
                continue
            name = getattr(call.func, "id", None) or getattr(call.func, "attr", "")
            types = known.get(name, [])[: len(call.args)]
            counts = Counter(kind.removesuffix(" | None") for kind in types)
            if max(counts.values(), default=0) > MOST:
                yield f"{path}:{call.lineno} {name}"


@pytest.mark.slow
def test_no_call_passes_more_than_three_values_of_one_type_by_position():
    paths = sorted(PACKAGE.rglob("*.py"))
    trees = {p.relative_to(PACKAGE).as_posix(): ast.parse(p.read_text()) for p in paths}
    assert list(long_calls(trees)) == []


def test_the_rule_sees_functions_methods_and_values():
    tree = ast.parse(
        "@dataclass\nclass Box:\n    a: int\n    b: int\n    c: int | None\n    d: int\n"
        "class Sums:\n    def add(self, a: str, b: str, c: str, d: str): ...\n"
        "def close(a: float, b: float, c: float, d: int): ...\n"
        "Box(1, 2, 3, 4)\nBox(1, 2, 3, d=4)\nSums().add('', '', '', '')\nclose(1.0, 2.0, 3.0, 4)\n"
    )
    assert list(long_calls({"a.py": tree})) == ["a.py:10 Box", "a.py:12 add"]
