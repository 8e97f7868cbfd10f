"""Errors of the command ``nlsq-dask``: its arguments, files and scheduler."""

from __future__ import annotations

from collections.abc import Sequence

from nlsq_dask._errors.kinds import (
    ClusterError,
    InputError,
    MissingLibraryError,
    join_names,
    shown,
)


def numbers_by_name_form(option: str, text: str) -> InputError:
    return InputError(
        f"{option} {shown(text)} is no list of numbers: write name=number pairs with commas "
        "between them, as in a=1,b=2.5."
    )


def bounds_by_name_form(text: str) -> InputError:
    return InputError(
        f"--bounds {shown(text)} is no list of bounds: write name=lower:upper with commas between "
        "them, as in a=0:10,b=:5. An end that is left out is no bound."
    )


def option_pair_form(option: str, text: str) -> InputError:
    return InputError(f"{option} {shown(text)} has no '=': write name=value.")


def model_name_unknown(text: str, names: Sequence[str]) -> InputError:
    return InputError(
        f"there is no model {shown(text)}: the models of nlsq_dask.models are {join_names(names)}, "
        "and A+B is their sum. Write module:function, or file.py:function, for a model of your own."
    )


def model_not_imported(text: str, cause: object) -> InputError:
    return InputError(
        f"the model {shown(text)} cannot be imported ({cause}): write module:function for a module "
        "in this directory or of an installed package, or file.py:function."
    )


def model_not_in_module(text: str, module: str, functions: Sequence[str]) -> InputError:
    has = f"the functions {join_names(functions)}" if functions else "no function"
    return InputError(f"the model {shown(text)} is not in {module}, which has {has}.")


def file_needs_a_name(option: str, path: str, names: Sequence[str]) -> InputError:
    example = names[0] if names else "y"
    has = f", which has {join_names(names)}" if names else ""
    return InputError(
        f"{option} {path} is a file of several arrays{has}: name the array behind '::', as in "
        f"{path}::{example}."
    )


def array_not_in_file(option: str, path: str, name: str, names: Sequence[str]) -> InputError:
    return InputError(
        f"{option}: there is no array {shown(name)} in {path}. The file has {join_names(names)}."
    )


def file_not_understood(option: str, path: str, cause: object) -> InputError:
    return InputError(
        f"{option} {path} cannot be read as its ending says ({cause}): pass a .npy, .npz, .csv, "
        ".h5 or .nc file, or the location of a Zarr array."
    )


def file_needs_h5py(option: str, path: str) -> MissingLibraryError:
    return MissingLibraryError(f"{option} {path} needs h5py: pip install h5py.")


def output_not_writable(option: str, path: str, why: str) -> InputError:
    return InputError(
        f"{option} {path} cannot be written ({why}). No fit was begun: name a file in a directory "
        "that exists and that you may write to."
    )


def scheduler_not_reached(address: str, cause: object) -> ClusterError:
    return ClusterError(
        f"the scheduler {address} does not answer ({cause}): check the address, or the scheduler "
        "file, and that the scheduler runs. --scheduler local starts a cluster on this machine."
    )
