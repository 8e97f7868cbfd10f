"""Models by their names: of ``nlsq_dask.models``, or a function of a module or a file."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle

from nlsq_dask import _errors, models


def named_model(text: str) -> Callable[..., Any]:
    """The model that a text names.

    Parameters
    ----------
    text : str
        Name of a model of ``nlsq_dask.models``; several with "+" between them for their sum; or
        "module:function" or "file.py:function".

    Raises
    ------
    InputError
        If there is no such model.
    """
    module_name, colon, function = text.rpartition(":")
    if not colon:
        return _ready_made(text)
    module = _imported(text, module_name)
    value = getattr(module, function, None)
    if not callable(value):
        functions = [name for name, _ in inspect.getmembers(module, inspect.isfunction)]
        raise _errors.model_not_in_module(text, module_name, functions)
    made: Callable[..., Any] = value
    return made


def _ready_made(text: str) -> Callable[..., Any]:
    """A model of the package, or a sum of such models."""
    names = [name for name in models.__all__ if name != "Sum"]
    terms = []
    for name in text.split("+"):
        if name.strip() not in names:
            raise _errors.model_name_unknown(text, names)
        terms.append(getattr(models, name.strip())())
    total, *others = terms
    for term in others:
        total = total + term
    made: Callable[..., Any] = total
    return made


def _imported(text: str, name: str) -> ModuleType:
    """Import a module, of this directory too, or a file.

    Workers of a cluster may not have the module: its functions are sent to them with their code.
    """
    here = Path.cwd()
    try:
        module = _of_file(Path(name)) if name.endswith(".py") else _of_name(name, here)
    except (ImportError, OSError, SyntaxError) as error:
        raise _errors.model_not_imported(text, error) from error
    file = getattr(module, "__file__", None)
    if name.endswith(".py") or (file is not None and Path(file).is_relative_to(here)):
        cloudpickle.register_pickle_by_value(module)
    return module


def _of_name(name: str, here: Path) -> ModuleType:
    if str(here) not in sys.path:  # Python does not search this directory for a command
        sys.path.insert(0, str(here))
    return importlib.import_module(name)


def _of_file(path: Path) -> ModuleType:
    name = f"nlsq_dask_model_{path.stem}"  # not the name of an installed module
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None, "every name that ends in .py has a loader"
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
