"""The contributor's page, the citation and the hooks say what the tree is."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import yaml

import nlsq_dask

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "nlsq_dask"
PAGE = (ROOT / "docs" / "contributing.md").read_text(encoding="utf-8")
FOLDER_ROW = re.compile(r"^\| `(\w+)/` \|[^|]+\| ([^|]+) \|$", re.MULTILINE)
FILE = re.compile(r"(?<![\w./-])[\w./-]+\.(?:py|md|toml|yaml|png)\b")
FOLDER = re.compile(r"`([\w/]+/)`")

#: Keys that version 1.2.0 of the Citation File Format asks for.
CITATION_KEYS = {"cff-version", "message", "title", "authors"}


def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def layers():
    """The layers of the package from the highest, each as the folders beside each other."""
    contracts = project()["tool"]["importlinter"]["contracts"]
    (contract,) = (c for c in contracts if c["type"] == "layers")
    return [layer.split(" | ") for layer in contract["layers"]]


def independent():
    """Folders that must not import each other, beside those of one layer."""
    contracts = project()["tool"]["importlinter"]["contracts"]
    (contract,) = (c for c in contracts if c["type"] == "independence")
    return {module.removeprefix("nlsq_dask.") for module in contract["modules"]}


def is_there(name):
    return (ROOT / name).exists() or (PACKAGE / name).exists()


def test_the_table_names_the_folders_of_the_package_in_the_order_of_the_layers():
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    listed = [folder for folder, _ in FOLDER_ROW.findall(PAGE)]
    assert set(listed) == folders
    assert len(listed) == len(folders)
    height = {folder: i for i, layer in enumerate(layers()) for folder in layer}
    assert [height[folder] for folder in listed] == sorted(height.values())


def test_the_table_says_what_the_contract_lets_a_folder_import():
    for folder, said in FOLDER_ROW.findall(PAGE):
        heights = [i for i, layer in enumerate(layers()) if folder in layer]
        below = {f for layer in layers()[heights[0] + 1 :] for f in layer}
        if folder in independent():
            below -= independent()
        listed = set(re.findall(r"`(\w+)`", said))
        if said == "all below":
            position = [f for f, _ in FOLDER_ROW.findall(PAGE)].index(folder)
            listed = {f for f, _ in FOLDER_ROW.findall(PAGE)[position + 1 :]}
        assert listed == below, folder


def test_every_file_and_folder_that_the_page_names_is_there():
    files = set(FILE.findall(PAGE))
    assert {"api/fit.py", "core/minimize.py", "tests/engines/pool_engine.py"} <= files
    names = files | set(FOLDER.findall(PAGE))
    assert [name for name in sorted(names) if not is_there(name) and not in_docs(name)] == []


def in_docs(name):
    """Links to other pages stand without their folder."""
    return (ROOT / "docs" / name).exists()


def test_every_test_folder_is_one_of_the_package_or_is_named():
    folders = {path.name for path in (ROOT / "tests").iterdir() if any(path.glob("*.py"))}
    own = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert [f for f in folders - own if f"tests/{f}/" not in PAGE] == []


def test_the_citation_has_the_version_of_the_package_and_the_keys_that_are_asked_for():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation.keys() >= CITATION_KEYS
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == nlsq_dask.__version__
    assert citation["license"] == project()["project"]["license"]
    assert [author["name"] for author in citation["authors"]] == [
        author["name"] for author in project()["project"]["authors"]
    ]


def test_the_newest_version_of_the_changelog_is_that_of_the_package():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## \[?([\w.]+)", text, re.MULTILINE)
    assert headings[:2] in (["Unreleased", nlsq_dask.__version__], [nlsq_dask.__version__])


def test_the_hooks_run_what_make_lint_runs():
    recipe = (ROOT / "Makefile").read_text(encoding="utf-8").partition("\nlint:")[2]
    commands = re.findall(r"^\t\$\(BIN\)/(.+)$", recipe.partition("\n\n")[0], re.MULTILINE)
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    (local,) = hooks["repos"]
    assert [hook["entry"] for hook in local["hooks"]] == commands
    assert commands


def test_a_source_distribution_holds_what_its_tests_and_pages_need():
    included = project()["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
    for name in ("nlsq_dask", "tests", "docs", "examples", "benchmarks", "Makefile"):
        assert f"/{name}" in included
    assert all((ROOT / name.removeprefix("/")).exists() for name in included)
