"""How one operation of a jaxpr carries the dependence of its inputs on rows to its outputs.

A rule gets the number of rows, the operation, and the states of its inputs, none of which is UNSURE
or COUPLED or ELEMENT. It looks at axes: an operation that leaves the axis of the rows alone keeps
their state, and one that moves or picks along it is not understood here (UNSURE).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from jax.extend.core import JaxprEqn

from nlsq_dask.user_model.row_state import SAME, Kind, State, coupled, join, position, row, unsure

Rule = Callable[[int, JaxprEqn, list[State]], State | list[State]]

LONG_ARRAY = "uses an array as long as the data"
_PICKED = "picks or moves rows by their position"

# fmt: off
REDUCTIONS = frozenset([
    "argmax", "argmin", "reduce_and", "reduce_max", "reduce_min", "reduce_or", "reduce_prod",
    "reduce_sum", "reduce_xor",
])

_ELEMENTWISE = frozenset([
    "abs", "acos", "acosh", "add", "add_any", "and", "asin", "asinh", "atan", "atan2", "atanh",
    "bessel_i0e", "bessel_i1e", "cbrt", "ceil", "clamp", "clz", "complex", "conj",
    "convert_element_type", "copy", "copy_p", "cos", "cosh", "digamma", "div", "eq", "eq_to",
    "erf", "erf_inv", "erfc", "exp", "exp2", "expm1", "floor", "ge", "gt", "igamma",
    "igamma_grad_a", "igammac", "imag", "integer_pow", "is_finite", "le", "le_to", "lgamma", "log",
    "log1p", "logistic", "lt", "lt_to", "max", "min", "mul", "ne", "neg", "nextafter", "not", "or",
    "polygamma", "population_count", "pow", "random_gamma_grad", "real", "reduce_precision",
    "regularized_incomplete_beta", "rem", "round", "rsqrt", "select_n", "shift_left",
    "shift_right_arithmetic", "shift_right_logical", "sign", "sin", "sinh", "sqrt", "square",
    "stop_gradient", "sub", "tan", "tanh", "xor", "zeta",
])
# fmt: on
CUMULATIVE = frozenset(["cumlogsumexp", "cummax", "cummin", "cumprod", "cumsum"])

# Operations on the last axes, with as many of them as given; all axes before are a batch.
_BATCHED = {
    "cholesky": 2,
    "eig": 2,
    "eigh": 2,
    "geqrf": 2,
    "lu": 2,
    "lu_pivots_to_permutation": 1,
    "qr": 2,
    "schur": 2,
    "svd": 2,
    "top_k": 1,
    "triangular_solve": 2,
}


def rule_of(name: str) -> Rule:
    """Rule of a primitive by its name."""
    return _RULES.get(name, _elementwise if name in _ELEMENTWISE else _unknown)


def shape_of(atom: Any) -> tuple[int, ...]:
    """Shape of a variable or literal of a jaxpr."""
    shape: tuple[int, ...] = atom.aval.shape
    return shape


def _unknown(n: int, eqn: JaxprEqn, states: list[State]) -> State:
    atoms = [*eqn.invars, *eqn.outvars]
    if all(state == SAME for state in states) and not any(
        size == n for atom in atoms for size in shape_of(atom)
    ):
        return SAME
    return unsure(f"uses {eqn.primitive.name} on rows")


def _elementwise(n: int, eqn: JaxprEqn, states: list[State]) -> State:
    out = shape_of(eqn.outvars[0])
    for shape in map(shape_of, eqn.invars):  # axes of size 1 may be repeated
        fits = len(shape) == len(out) and all(a in (1, b) for a, b in zip(shape, out, strict=True))
        if shape != () and not fits:
            return _unknown(n, eqn, states)
    return join(states)


def _barrier(_n: int, _eqn: JaxprEqn, states: list[State]) -> list[State]:
    return states


def _iota(n: int, eqn: JaxprEqn, _states: list[State]) -> State:
    axis = eqn.params["dimension"]
    return position(axis) if eqn.params["shape"][axis] == n else SAME


def _broadcast(_n: int, eqn: JaxprEqn, states: list[State]) -> State:
    state = states[0]
    if state.axis is None:
        return state
    return state.at(int(eqn.params["broadcast_dimensions"][state.axis]))


def _reshape(n: int, eqn: JaxprEqn, states: list[State]) -> State:
    state, shape, new = states[0], shape_of(eqn.invars[0]), shape_of(eqn.outvars[0])
    if state.axis is None:
        return state
    before = math.prod(shape[: state.axis])
    for axis, size in enumerate(new):
        if size == n and math.prod(new[:axis]) == before:
            return state.at(axis)
    return unsure("cuts the rows into pieces (reshape)")


def _transpose(_n: int, eqn: JaxprEqn, states: list[State]) -> State:
    state = states[0]
    if state.axis is None:
        return state
    return state.at(list(eqn.params["permutation"]).index(state.axis))


def _squeeze(_n: int, eqn: JaxprEqn, states: list[State]) -> State:
    return _without(states[0], eqn.params["dimensions"])


def _reduce(_n: int, eqn: JaxprEqn, states: list[State]) -> State:
    return _without(join(states), eqn.params["axes"])


def _without(state: State, removed: Sequence[int]) -> State:
    """State after axes other than that of the rows are gone."""
    if state.axis is None:
        return state
    return state.at(state.axis - sum(axis < state.axis for axis in removed))


def _same_axes(_n: int, _eqn: JaxprEqn, states: list[State]) -> State:
    return join(states)


def _along(key: str) -> Rule:
    """Rule of an operation that moves values along the axes named by a parameter."""

    def rule(n: int, eqn: JaxprEqn, states: list[State]) -> State:
        axes = eqn.params[key]
        axes = axes if isinstance(axes, tuple) else (axes,)
        if any(shape_of(atom)[axis] == n for atom in eqn.invars for axis in axes):
            return unsure(f"{_PICKED} ({eqn.primitive.name})")
        return join(states)

    return rule


def _concatenate(n: int, eqn: JaxprEqn, states: list[State]) -> State:
    axis = eqn.params["dimension"]
    if any(shape_of(atom)[axis] == n for atom in [*eqn.invars, *eqn.outvars]):
        return unsure(f"{_PICKED} (concatenate)")
    return join(states)


def _stack(_n: int, eqn: JaxprEqn, states: list[State]) -> State:
    new = eqn.params["axis"]
    return join([s if s.axis is None else s.at(s.axis + (s.axis >= new)) for s in states])


def _slice(n: int, eqn: JaxprEqn, states: list[State]) -> State:
    if all(
        size == new or size != n
        for size, new in zip(shape_of(eqn.invars[0]), shape_of(eqn.outvars[0]), strict=True)
    ):
        return join(states)
    return unsure(f"{_PICKED} ({eqn.primitive.name})")


def _update_slice(n: int, eqn: JaxprEqn, states: list[State]) -> State:
    whole, part = shape_of(eqn.invars[0]), shape_of(eqn.invars[1])
    if all(size == new or size != n for size, new in zip(whole, part, strict=True)):
        return join(states)
    return unsure(f"{_PICKED} (dynamic_update_slice)")


def _pad(n: int, eqn: JaxprEqn, states: list[State]) -> State:
    state = join(states)
    if state.axis is None or eqn.params["padding_config"][state.axis] == (0, 0, 0):
        return _unknown(n, eqn, states) if state.axis is None else state
    return unsure(f"{_PICKED} (pad)")


def _dot(_n: int, eqn: JaxprEqn, states: list[State]) -> State:
    (left_sum, right_sum), (left_batch, right_batch) = eqn.params["dimension_numbers"]
    left, right = (len(shape_of(atom)) for atom in eqn.invars)
    left_free = [a for a in range(left) if a not in left_sum and a not in left_batch]
    right_free = [a for a in range(right) if a not in right_sum and a not in right_batch]
    first = list(left_batch) + left_free
    moved = []
    for state, batch, free, offset in (
        (states[0], left_batch, left_free, len(left_batch)),
        (states[1], right_batch, right_free, len(first)),
    ):
        if state.axis is None:
            moved.append(state)
        elif state.axis in batch:
            moved.append(state.at(list(batch).index(state.axis)))
        else:
            moved.append(state.at(offset + free.index(state.axis)))
    return join(moved)


def _convolve(n: int, eqn: JaxprEqn, states: list[State]) -> State:
    numbers = eqn.params["dimension_numbers"]
    signal, kernel = states
    if kernel == SAME and signal.axis == numbers.lhs_spec[0]:
        return signal.at(numbers.out_spec[0])
    if join(states).axis is None:
        return _unknown(n, eqn, states)
    return coupled("convolves along the rows")


def _batched(n: int, eqn: JaxprEqn, states: list[State]) -> State:
    last = _BATCHED[eqn.primitive.name]
    for state, atom in zip(states, eqn.invars, strict=True):
        if state.axis is not None and state.axis >= len(shape_of(atom)) - last:
            return _unknown(n, eqn, states)
    return join(states)


def _gather(n: int, eqn: JaxprEqn, states: list[State]) -> State:
    numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    table, index = states
    if Kind.POSITION in (table.kind, index.kind):
        return unsure(f"{_PICKED} (gather)")
    batch = [a for a in range(len(shape_of(eqn.outvars[0]))) if a not in numbers.offset_dims]
    pairs = dict(
        zip(numbers.operand_batching_dims, numbers.start_indices_batching_dims, strict=True)
    )
    if index.axis is not None:
        if index.axis < len(batch) and (table.axis is None or pairs.get(table.axis) == index.axis):
            return row(batch[index.axis])
        return unsure(f"{_PICKED} (gather)")
    if table.axis is None:
        return SAME
    if table.axis in pairs:
        return row(batch[pairs[table.axis]])
    if sizes[table.axis] == n and table.axis not in numbers.collapsed_slice_dims:
        gone = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
        window = [a for a in range(len(sizes)) if a not in gone]
        return row(int(numbers.offset_dims[window.index(table.axis)]))
    return unsure(f"{_PICKED} (gather)")


def _scatter(n: int, eqn: JaxprEqn, states: list[State]) -> State:
    numbers = eqn.params["dimension_numbers"]
    shape, changes = shape_of(eqn.invars[0]), shape_of(eqn.invars[2])
    gone = {*numbers.inserted_window_dims, *numbers.operand_batching_dims}
    window = [a for a in range(len(shape)) if a not in gone]
    target, index, update = states
    row_axes = [axis for axis, size in enumerate(shape) if size == n]
    if index != SAME or len(row_axes) != 1:
        return _unknown(n, eqn, states)
    axis = row_axes[0]
    if axis in numbers.scatter_dims_to_operand_dims and axis in gone:
        return coupled("changes single rows by their position (scatter)")
    if axis in window:
        at = numbers.update_window_dims[window.index(axis)]
        if changes[at] == n and update.axis in (None, at):
            return join([target, update.at(axis) if update.has_axis else update])
    return _unknown(n, eqn, states)


_RULES: dict[str, Rule] = {
    **dict.fromkeys(REDUCTIONS, _reduce),
    **dict.fromkeys(CUMULATIVE, _same_axes),
    **dict.fromkeys(_BATCHED, _batched),
    **dict.fromkeys(["scatter", "scatter_add", "scatter-add", "scatter_mul"], _scatter),
    "broadcast_in_dim": _broadcast,
    "concatenate": _concatenate,
    "conv_general_dilated": _convolve,
    "dot_general": _dot,
    "dynamic_slice": _slice,
    "dynamic_update_slice": _update_slice,
    "fft": _same_axes,
    "gather": _gather,
    "iota": _iota,
    "optimization_barrier": _barrier,
    "pad": _pad,
    "reshape": _reshape,
    "rev": _along("dimensions"),
    "slice": _slice,
    "sort": _along("dimension"),
    "split": _along("axis"),
    "squeeze": _squeeze,
    "stack": _stack,
    "transpose": _transpose,
}
