"""Errors of labelled data: files, labels, names of variables, and times."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from nlsq_dask._errors.kinds import InputError, InputTypeError, join_names, shown


def file_not_sent(name: str) -> InputError:
    return InputError(
        f"the variable {name!r} is in a file that other processes cannot open by its path, so that "
        "a cluster cannot read it: store it as a file that all workers see, or fit it without a "
        "cluster."
    )


def dimensions_unknown(
    name: str, unknown: Sequence[Hashable], known: Sequence[Hashable]
) -> InputError:
    lacking = join_names([repr(dim) for dim in unknown])
    return InputError(
        f"{name} has the dimension {lacking}, which y does not have; y has "
        f"{join_names([repr(dim) for dim in known])}: rename it, {name}.rename({{...}}), or choose "
        f"one index of it, {name}.isel({{...}})."
    )


def dimension_ambiguous(
    name: str, shape: tuple[int, ...], choices: Sequence[tuple[Hashable, ...]]
) -> InputError:
    listed = " or ".join("(" + ", ".join(map(repr, choice)) + ")" for choice in choices)
    return InputError(
        f"{name} has shape {tuple(shape)} and no names, so that it may belong to {listed} of y: "
        "pass an array of xarray with names, such as y's own coordinate, or an array of as many "
        "dimensions as y, with lengths of 1."
    )


def lengths_differ(name: str, got: int, expected: int, title: str) -> InputError:
    return InputError(
        f"{name} has {got} rows along {title}, but y has {expected}, and no labels say which "
        "belong together: choose the same rows of both, or give both a coordinate of labels."
    )


def row_labels_differ(
    name: str,
    other: str,
    title: str,
    missing: tuple[int, Sequence[str]],
    more: tuple[int, Sequence[str]],
) -> InputError:
    parts = []
    if missing[0]:
        parts.append(f"lacks {_few_labels(*missing, f' of {other}')}")
    if more[0]:
        parts.append(f"has {_few_labels(*more, f' that {other} lacks')}")
    return InputError(
        f"{name} {' and '.join(parts)} along {title}, so that rows cannot be paired: choose the "
        f"labels that both have, for example with xarray.align({other}, {name}, join='inner') or "
        f"the reindex of pandas. To pair rows by position instead, pass {name} without labels, as "
        f"{name}.data or {name}.to_numpy()."
    )


def _few_labels(count: int, first: Sequence[str], whose: str) -> str:
    listed = ", ".join(first) + (", ..." if count > len(first) else "")
    return f"{count} label{'' if count == 1 else 's'}{whose} ({listed})"


def labels_repeated(name: str, other: str, title: str, example: object) -> InputError:
    return InputError(
        f"{name} and {other} have their labels along {title} in different orders, and a label "
        f"occurs more than once (one is {example}), so that their rows cannot be paired: drop the "
        f"repeated labels, or pass {name} without labels to pair rows by position."
    )


def times_of_another_kind(name: str, axis: str, dtype: object) -> InputTypeError:
    return InputTypeError(
        f"{name} has values of dtype {dtype} that do not become numbers in {axis}, as the first "
        "time of the fit does: pass dates for dates, durations for durations, and dates of one "
        "calendar, or pass the numbers themselves."
    )


def durations_of_months(name: str, dtype: object) -> InputTypeError:
    return InputTypeError(
        f"{name} has dtype {dtype}, but months and years have no fixed length: pass durations in "
        f"days, or dates, for example {name} + np.datetime64('2000-01-01')."
    )


def durations_without_unit(name: str) -> InputTypeError:
    return InputTypeError(
        f"{name} has dtype timedelta64, which does not say what its numbers count: give it a unit, "
        f"for example {name}.astype('timedelta64[s]')."
    )


def data_set_as_array(
    name: str, variables: Sequence[Hashable], dims: Sequence[Hashable]
) -> InputTypeError:
    first, dim = (next(iter(names), "name") for names in (variables, dims))
    return InputTypeError(
        f"{name} is a Dataset of {_listed(variables)}, but a fit needs one variable: name it, and "
        f"pass the Dataset as data, for example fit(model, {dim!r}, {first!r}, data=ds)."
    )


def tree_as_array(name: str, groups: Sequence[str]) -> InputTypeError:
    return InputTypeError(
        f"{name} is a DataTree with variables in {_listed(groups)}, but a fit needs one variable: "
        "name it, and pass its group as data, for example "
        f"fit(model, 'time', 'signal', data=tree[{next(iter(groups), '/')!r}])."
    )


def variable_of_tree(argument: str, name: str, groups: Sequence[str]) -> InputError:
    return InputError(
        f"{argument} = {name!r} is no variable of data, a DataTree with variables in "
        f"{_listed(groups)}: pass one group, such as data=tree[{next(iter(groups), '/')!r}], and "
        "the names of its variables."
    )


def not_a_data_set(data: object) -> InputTypeError:
    return InputTypeError(
        f"data = {shown(data)} holds no variables by name: pass a Dataset, a DataFrame, a "
        "dictionary or a group of arrays, such as a query of polars after .collect(), or leave "
        "data out."
    )


def variable_unknown(argument: str, name: str, known: Sequence[Hashable]) -> InputError:
    return InputError(
        f"{argument} = {name!r} is no variable of data, which has {_listed(known)}: pass the name "
        "of a variable, or an array."
    )


def coordinate_unknown(name: str, known: Sequence[Hashable]) -> InputError:
    return InputError(
        f"{name!r} is no coordinate of y, which has {_listed(known)}: pass the name of a "
        "coordinate or an array, or pass a data set with a variable of this name as data."
    )


def _listed(names: Sequence[Hashable]) -> str:
    return join_names([repr(name) for name in names]) if names else "none"
