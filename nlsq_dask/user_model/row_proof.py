"""Proof from a model's jaxpr that the model is row-wise, or that it is not.

A model is row-wise if its value at a row is a function of this row alone. The jaxpr of a model is
traced for n rows, where n is a distinctive prime. Each array of the jaxpr gets a state, which
follows from the operation that makes the array and from the states of its inputs:

SAME      the same value at every row; an axis of length n repeats one value
ROW       slice i along one axis is a function of row i alone
ELEMENT   inside a loop over rows: a function of the current row alone
POSITION  slice i along one axis depends on i, as an index does
UNSURE    not known; evaluations with numbers have to decide
COUPLED   a value depends on several rows, or on the number or the position of rows

SAME or ROW of the model's value prove that the model is row-wise. COUPLED means that rows are
summed, accumulated or combined. An operation that is not understood gives UNSURE.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from nlsq_dask.user_model.jaxprs import ClosedJaxpr, Jaxpr, Literal

if TYPE_CHECKING:
    from jax.extend.core import JaxprEqn, Var

# fmt: off
# Operations that call a jaxpr on their own inputs. Others have jaxprs for other purposes.
_CALLS = frozenset([
    "checkpoint", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call",
    "custom_vjp_call_jaxpr", "jit", "pjit", "remat", "remat2",
])
_ELEMENTWISE = frozenset([
    "abs", "acos", "acosh", "add", "add_any", "and", "asin", "asinh", "atan", "atan2", "atanh",
    "bessel_i0e", "bessel_i1e", "cbrt", "ceil", "clamp", "clz", "complex", "conj",
    "convert_element_type", "copy", "copy_p", "cos", "cosh", "digamma", "div", "eq", "eq_to",
    "erf", "erf_inv", "erfc", "exp", "exp2", "expm1", "floor", "ge", "gt", "igamma",
    "igamma_grad_a", "igammac", "imag", "integer_pow", "is_finite", "le", "le_to", "lgamma", "log",
    "log1p", "logistic", "lt", "lt_to", "max", "min", "mul", "ne", "neg", "nextafter", "not", "or",
    "polygamma", "polynomial", "population_count", "pow", "random_gamma_grad", "real",
    "reduce_precision", "regularized_incomplete_beta", "rem", "round", "rsqrt", "select_n",
    "shift_left", "shift_right_arithmetic", "shift_right_logical", "sign", "sin", "sinh", "sqrt",
    "square", "stop_gradient", "sub", "tan", "tanh", "xor", "zeta",
])
_REDUCTIONS = frozenset([
    "argmax", "argmin", "reduce_and", "reduce_max", "reduce_min", "reduce_or", "reduce_prod",
    "reduce_sum", "reduce_xor",
])
_CUMULATIVE = frozenset(["cumlogsumexp", "cummax", "cummin", "cumprod", "cumsum"])
# Operations on so many last axes; the axes before are a batch.
_BATCHED = {
    "cholesky": 2, "eig": 2, "eigh": 2, "geqrf": 2, "lu": 2, "lu_pivots_to_permutation": 1,
    "qr": 2, "schur": 2, "svd": 2, "top_k": 1, "triangular_solve": 2,
}
_VERBS = {
    "argmax": "searches", "argmin": "searches", "cumsum": "accumulates over",
    "cumprod": "accumulates over", "dot_general": "sums over", "fft": "transforms",
    "reduce_max": "takes the maximum of", "reduce_min": "takes the minimum of",
    "reduce_prod": "multiplies", "reduce_sum": "sums over",
}
# fmt: on

# Reasons, each to be read after "it".
_ALL_ROWS = "combines each row with all rows"
_LONG_ARRAY = "uses an array as long as the data"
_PICKED = "picks or moves rows by their position"
_LOOP = "decides by all rows how often to repeat or which way to go"


class Kind(IntEnum):
    """How an array depends on rows; see the module."""

    SAME = 0
    ROW = 1
    ELEMENT = 2
    POSITION = 3
    UNSURE = 4
    COUPLED = 5


@dataclass(frozen=True)
class State:
    """Dependence of one array on rows; ``axis`` is the axis of the rows for ROW and POSITION."""

    kind: Kind
    axis: int | None = None
    reason: str = ""

    def at(self, axis: int) -> State:
        """The same dependence along another axis."""
        return State(self.kind, axis, self.reason)

    def without(self, removed: Sequence[int]) -> State:
        """State after other axes are removed."""
        if self.axis is None:
            return self
        return self.at(self.axis - sum(axis < self.axis for axis in removed))


SAME = State(Kind.SAME)
ELEMENT = State(Kind.ELEMENT)

Rule = Callable[[int, "JaxprEqn", list[State]], State | list[State]]


def _unsure(reason: str) -> State:
    return State(Kind.UNSURE, None, reason)


def _coupled(reason: str) -> State:
    return State(Kind.COUPLED, None, reason)


def _join(states: Sequence[State]) -> State:
    """State of an array whose elements depend on the elements of others at the same place."""
    worst = max(states, key=lambda state: state.kind, default=SAME)
    if worst.kind >= Kind.UNSURE:
        return worst
    axes = {state.axis for state in states if state.axis is not None}
    if len(axes) > 1 or (axes and any(state.kind == Kind.ELEMENT for state in states)):
        return _coupled(_ALL_ROWS)
    return worst


def verdict(closed: ClosedJaxpr, n: int, n_coords: int) -> State:
    """State of a model's value: SAME or ROW proves that the model is row-wise.

    Parameters
    ----------
    closed : ClosedJaxpr
        A model traced for n rows. Its inputs are the coordinates (n,) and then the parameters (p,).
    n : int
        Number of rows.
    n_coords : int
        Number of coordinates.

    Returns
    -------
    State
        SAME, ROW, UNSURE or COUPLED.
    """
    inputs = [State(Kind.ROW, 0)] * n_coords + [SAME] * (len(closed.jaxpr.invars) - n_coords)
    state = _run(n, closed, inputs)[0]
    if state.kind == Kind.POSITION:
        return _coupled("depends on the position of a row in the data")
    return state


def _run(n: int, closed: ClosedJaxpr | Jaxpr, inputs: Sequence[State]) -> list[State]:
    """States of the outputs of a jaxpr, given the states of its inputs."""
    jaxpr: Jaxpr = closed.jaxpr if isinstance(closed, ClosedJaxpr) else closed
    consts = closed.consts if isinstance(closed, ClosedJaxpr) else []
    known: dict[Var, State] = dict(zip(jaxpr.invars, inputs, strict=True))
    known |= {v: _constant(n, c) for v, c in zip(jaxpr.constvars, consts, strict=True)}

    def state(atom: Any) -> State:
        return SAME if isinstance(atom, Literal) else known[atom]

    for eqn in jaxpr.eqns:
        outputs = _apply(n, eqn, [state(atom) for atom in eqn.invars])
        for var, output in zip(eqn.outvars, outputs, strict=True):
            known[var] = _checked(n, output, _shape(var))
    return [state(atom) for atom in jaxpr.outvars]


def _constant(n: int, value: Any) -> State:
    """State of an array that the model closes over."""
    axes = [axis for axis, size in enumerate(np.shape(value)) if size == n]
    if not axes:
        return SAME
    array = np.asarray(value)
    cut = tuple(slice(1) if axis in axes else slice(None) for axis in range(array.ndim))
    if np.array_equal(array, np.broadcast_to(array[cut], array.shape), equal_nan=True):
        return SAME
    return State(Kind.POSITION, axes[0]) if len(axes) == 1 else _unsure(_LONG_ARRAY)


def _checked(n: int, state: State, shape: tuple[int, ...]) -> State:
    """The state, or UNSURE unless its axis is the only axis of length n."""
    if state.kind == Kind.SAME or state.kind >= Kind.UNSURE:
        return state
    found = [axis for axis, size in enumerate(shape) if size == n]
    expected = [] if state.axis is None else [state.axis]
    return state if found == expected else _unsure(_ALL_ROWS)


def _apply(n: int, eqn: JaxprEqn, states: list[State]) -> list[State]:
    """States of the outputs of one operation."""
    name = eqn.primitive.name
    if name in _CONTROL:
        try:
            return _CONTROL[name](n, eqn, states)
        except (AttributeError, KeyError):  # a version of JAX that describes it in another way
            return [_unsure(f"uses {name}")] * len(eqn.outvars)
    inner = _called_jaxpr(eqn)
    if inner is not None:
        return _run(n, inner, states)
    mixed = _reduced(n, eqn) or _join([state for state in states if state.axis is None])
    if mixed.kind < Kind.UNSURE and eqn.effects:  # it may change the input of another operation
        mixed = _unsure(f"uses {name}")
    if mixed.kind >= Kind.UNSURE:
        return [mixed] * len(eqn.outvars)
    if mixed.kind == Kind.ELEMENT:  # any operation on one row
        return [_join(states)] * len(eqn.outvars)
    rule = _RULES.get(name, _elementwise if name in _ELEMENTWISE else _unknown)
    result = rule(n, eqn, states)
    return result if isinstance(result, list) else [result] * len(eqn.outvars)


def _reduced(n: int, eqn: JaxprEqn) -> State | None:
    """State of a result for which an axis of length n is summed or accumulated; else None."""
    name = eqn.primitive.name
    shape = _shape(eqn.invars[0]) if eqn.invars else ()
    if name in _REDUCTIONS:
        axes = eqn.params["axes"]
    elif name in _CUMULATIVE:
        axes = (eqn.params["axis"],)
    elif name == "fft":
        axes = range(len(shape) - len(eqn.params["fft_lengths"]), len(shape))
    elif name == "dot_general":
        axes = eqn.params["dimension_numbers"][0][0]
    else:
        return None
    if not any(shape[axis] == n for axis in axes):
        return None
    if name in ("reduce_and", "reduce_or", "reduce_xor"):
        return _unsure("tests a condition on all rows at once")
    return _coupled(f"{_VERBS.get(name, 'combines')} all rows ({name})")


def _called_jaxpr(eqn: JaxprEqn) -> ClosedJaxpr | Jaxpr | None:
    """The jaxpr that a call runs on its own inputs; None for other operations."""
    names = ("jaxpr", "call_jaxpr", "fun_jaxpr") if eqn.primitive.name in _CALLS else ()
    for inner in map(eqn.params.get, names):
        if isinstance(inner, ClosedJaxpr | Jaxpr):
            jaxpr = inner.jaxpr if isinstance(inner, ClosedJaxpr) else inner
            if len(jaxpr.invars) == len(eqn.invars):
                return inner
    return None


def _shape(atom: Any) -> tuple[int, ...]:
    return atom.aval.shape  # type: ignore[no-any-return]


def _scan(n: int, eqn: JaxprEqn, states: list[State]) -> list[State]:
    n_consts, n_carry = _scan_counts(eqn)
    over_rows = eqn.params["length"] == n
    consts, carry = states[:n_consts], states[n_consts : n_consts + n_carry]
    items = [_scanned(state) for state in states[n_consts + n_carry :]]
    if over_rows:
        carry = [_join([state, _unsure("goes from row to row (scan)")]) for state in carry]
    while True:  # ends, since a joined state never goes down
        outputs = _run(n, eqn.params["jaxpr"], [*consts, *carry, *items])
        new = [_join(pair) for pair in zip(carry, outputs[:n_carry], strict=True)]
        if new == carry:
            break
        carry = new
    return carry + [_stacked(state, over_rows) for state in outputs[n_carry:]]


def _scan_counts(eqn: JaxprEqn) -> tuple[int, int]:
    """Numbers of constants and of carried values. JAX 0.12 has trees in place of numbers."""
    if "ft_in" in eqn.params:
        consts, carry, _ = (len(list(tree)) for tree in eqn.params["ft_in"].unpack())
        return consts, carry
    return eqn.params["num_consts"], eqn.params["num_carry"]


def _scanned(state: State) -> State:
    """State of one item of an array that a loop reads along its first axis."""
    if state.axis is None:
        return state
    if state.axis > 0:
        return state.at(state.axis - 1)
    return ELEMENT if state.kind == Kind.ROW else _unsure("counts rows (scan)")


def _stacked(state: State, over_rows: bool) -> State:
    """State of the array of a loop's items."""
    if state.axis is not None:
        return state.at(state.axis + 1)
    if over_rows and state.kind == Kind.ELEMENT:
        return State(Kind.ROW, 0)
    return _unsure(_LONG_ARRAY) if over_rows and state.kind == Kind.SAME else state


def _while(n: int, eqn: JaxprEqn, states: list[State]) -> list[State]:
    n_cond, n_body = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    cond_consts, body_consts = states[:n_cond], states[n_cond : n_cond + n_body]
    carry = states[n_cond + n_body :]
    while True:  # ends, since a joined state never goes down
        outputs = _run(n, eqn.params["body_jaxpr"], [*body_consts, *carry])
        going = _run(n, eqn.params["cond_jaxpr"], [*cond_consts, *carry])[0]
        new = []
        for before, after, var in zip(carry, outputs, eqn.outvars, strict=True):
            # A loop under vmap has a condition for each row, which stops this row alone.
            by_row = going.axis is None or (*_shape(var), 0)[going.axis] == n
            control = _controlling(going) if by_row else _unsure(_LOOP)
            new.append(_join([_join([before, after]), control]))
        if new == carry:
            return carry
        carry = new


def _controlling(state: State) -> State:
    """State that a condition adds to the values that it decides about."""
    return _unsure(_LOOP) if state.kind >= Kind.POSITION else state


def _cond(n: int, eqn: JaxprEqn, states: list[State]) -> list[State]:
    branches = [_run(n, branch, states[1:]) for branch in eqn.params["branches"]]
    control = _controlling(states[0])
    return [_join([control, *outputs]) for outputs in zip(*branches, strict=True)]


def _linear_solve(n: int, eqn: JaxprEqn, states: list[State]) -> list[State]:
    lengths = eqn.params["const_lengths"]
    start = lengths.matvec + lengths.vecmat
    consts, sides = states[start : start + lengths.solve], states[sum(lengths) :]
    return _run(n, eqn.params["jaxprs"].solve, [*consts, *sides])


def _expanded(n: int, eqn: JaxprEqn, states: list[State]) -> list[State]:
    """States of the outputs of an operation that JAX 0.12 traces as other operations."""
    with jax.enable_x64(True):
        inner = jax.make_jaxpr(eqn.params["_prim"].expand)(*(atom.aval for atom in eqn.invars))
    return _run(n, inner, states)


_CONTROL = {
    "call_hi_primitive": _expanded,
    "cond": _cond,
    "custom_linear_solve": _linear_solve,
    "scan": _scan,
    "while": _while,
}

# Rules of single operations. No input is UNSURE, COUPLED or ELEMENT. An operation that keeps the
# axis of the rows keeps the state. An operation that moves or picks rows gives UNSURE.


def _unknown(n: int, eqn: JaxprEqn, states: list[State]) -> State:
    sizes = [size for atom in (*eqn.invars, *eqn.outvars) for size in _shape(atom)]
    if n not in sizes and all(state == SAME for state in states):
        return SAME
    return _unsure(f"uses {eqn.primitive.name} on rows")


def _elementwise(n: int, eqn: JaxprEqn, states: list[State]) -> State:
    out = _shape(eqn.outvars[0])
    for shape in map(_shape, eqn.invars):  # an axis of size 1 may be repeated
        fits = len(shape) == len(out) and all(a in (1, b) for a, b in zip(shape, out, strict=True))
        if shape != () and not fits:
            return _unknown(n, eqn, states)
    return _join(states)


def _same_axes(_n: int, _eqn: JaxprEqn, states: list[State]) -> State:
    return _join(states)


def _iota(n: int, eqn: JaxprEqn, _states: list[State]) -> State:
    axis = eqn.params["dimension"]
    return State(Kind.POSITION, axis) if eqn.params["shape"][axis] == n else SAME


def _broadcast(_n: int, eqn: JaxprEqn, states: list[State]) -> State:
    state, axes = states[0], eqn.params["broadcast_dimensions"]
    return state if state.axis is None else state.at(int(axes[state.axis]))


def _reshape(n: int, eqn: JaxprEqn, states: list[State]) -> State:
    state, shape, new = states[0], _shape(eqn.invars[0]), _shape(eqn.outvars[0])
    if state.axis is None:
        return state
    before = math.prod(shape[: state.axis])
    for axis, size in enumerate(new):
        if size == n and math.prod(new[:axis]) == before:
            return state.at(axis)
    return _unsure("cuts the rows into pieces (reshape)")


def _transpose(_n: int, eqn: JaxprEqn, states: list[State]) -> State:
    state, order = states[0], list(eqn.params["permutation"])
    return state if state.axis is None else state.at(order.index(state.axis))


def _removing(key: str) -> Rule:
    """Rule of an operation that removes the axes of a parameter, and not the axis of the rows."""
    return lambda _n, eqn, states: _join(states).without(eqn.params[key])


def _along(key: str) -> Rule:
    """Rule of an operation that moves values along the axes of a parameter."""

    def rule(n: int, eqn: JaxprEqn, states: list[State]) -> State:
        axes = np.atleast_1d(eqn.params[key])
        atoms = [*eqn.invars, *eqn.outvars] if key == "dimension" else eqn.invars
        if any(_shape(atom)[axis] == n for atom in atoms for axis in axes):
            return _unsure(f"{_PICKED} ({eqn.primitive.name})")
        return _join(states)

    return rule


def _stack(_n: int, eqn: JaxprEqn, states: list[State]) -> State:
    new = eqn.params["axis"]
    return _join([s if s.axis is None else s.at(s.axis + (s.axis >= new)) for s in states])


def _slice(n: int, eqn: JaxprEqn, states: list[State]) -> State:
    """Rule of slices, and of updates by a slice, that take all rows."""
    is_update = eqn.primitive.name == "dynamic_update_slice"
    part = _shape(eqn.invars[1] if is_update else eqn.outvars[0])
    if all(a == b or a != n for a, b in zip(_shape(eqn.invars[0]), part, strict=True)):
        return _join(states)
    return _unsure(f"{_PICKED} ({eqn.primitive.name})")


def _pad(n: int, eqn: JaxprEqn, states: list[State]) -> State:
    state = _join(states)
    if state.axis is None:
        return _unknown(n, eqn, states)
    if eqn.params["padding_config"][state.axis] == (0, 0, 0):
        return state
    return _unsure(f"{_PICKED} (pad)")


def _dot(_n: int, eqn: JaxprEqn, states: list[State]) -> State:
    summed, batched = eqn.params["dimension_numbers"]
    moved, n_free = [], 0
    for state, atom, sums, batch in zip(states, eqn.invars, summed, batched, strict=True):
        free = [a for a in range(len(_shape(atom))) if a not in sums and a not in batch]
        order = [*batch, *[None] * n_free, *free]
        moved.append(state if state.axis is None else state.at(order.index(state.axis)))
        n_free = len(free)
    return _join(moved)


def _convolve(n: int, eqn: JaxprEqn, states: list[State]) -> State:
    numbers = eqn.params["dimension_numbers"]
    signal, kernel = states
    if kernel == SAME and signal.axis == numbers.lhs_spec[0]:
        return signal.at(numbers.out_spec[0])
    if _join(states).axis is None:
        return _unknown(n, eqn, states)
    return _coupled("convolves along the rows")


def _batched(n: int, eqn: JaxprEqn, states: list[State]) -> State:
    last = _BATCHED[eqn.primitive.name]
    for state, atom in zip(states, eqn.invars, strict=True):
        if state.axis is not None and state.axis >= len(_shape(atom)) - last:
            return _unknown(n, eqn, states)
    return _join(states)


def _gather(n: int, eqn: JaxprEqn, states: list[State]) -> State:
    numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    table, index = states
    batch = [a for a in range(len(_shape(eqn.outvars[0]))) if a not in numbers.offset_dims]
    batching = numbers.operand_batching_dims, numbers.start_indices_batching_dims
    pairs = dict(zip(*batching, strict=True))
    if Kind.POSITION in (table.kind, index.kind):
        pass
    elif index.axis is not None:
        if index.axis < len(batch) and (table.axis is None or pairs.get(table.axis) == index.axis):
            return State(Kind.ROW, batch[index.axis])
    elif table.axis is None:
        return SAME
    elif table.axis in pairs:
        return State(Kind.ROW, batch[pairs[table.axis]])
    elif sizes[table.axis] == n and table.axis not in numbers.collapsed_slice_dims:
        gone = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
        window = [a for a in range(len(sizes)) if a not in gone]
        return State(Kind.ROW, int(numbers.offset_dims[window.index(table.axis)]))
    return _unsure(f"{_PICKED} (gather)")


def _scatter(n: int, eqn: JaxprEqn, states: list[State]) -> State:
    numbers = eqn.params["dimension_numbers"]
    shape, changes = _shape(eqn.invars[0]), _shape(eqn.invars[2])
    gone = {*numbers.inserted_window_dims, *numbers.operand_batching_dims}
    window = [a for a in range(len(shape)) if a not in gone]
    target, index, update = states
    row_axes = [axis for axis, size in enumerate(shape) if size == n]
    if index != SAME or len(row_axes) != 1:
        return _unknown(n, eqn, states)
    axis = row_axes[0]
    if axis in numbers.scatter_dims_to_operand_dims and axis in gone:
        return _coupled("changes single rows by their position (scatter)")
    if axis in window:
        at = numbers.update_window_dims[window.index(axis)]
        if changes[at] == n and update.axis in (None, at):
            return _join([target, update if update.axis is None else update.at(axis)])
    return _unknown(n, eqn, states)


_RULES: dict[str, Rule] = {
    **dict.fromkeys(_REDUCTIONS, _removing("axes")),
    **dict.fromkeys(_CUMULATIVE, _same_axes),
    **dict.fromkeys(_BATCHED, _batched),
    **dict.fromkeys(["scatter", "scatter_add", "scatter-add", "scatter_mul"], _scatter),
    **dict.fromkeys(["dynamic_slice", "dynamic_update_slice", "slice"], _slice),
    "broadcast_in_dim": _broadcast,
    "concatenate": _along("dimension"),
    "conv_general_dilated": _convolve,
    "dot_general": _dot,
    "fft": _same_axes,
    "gather": _gather,
    "iota": _iota,
    "optimization_barrier": lambda _n, _eqn, states: states,
    "pad": _pad,
    "reshape": _reshape,
    "rev": _along("dimensions"),
    "sort": _along("dimension"),
    "split": _along("axis"),
    "squeeze": _removing("dimensions"),
    "stack": _stack,
    "transpose": _transpose,
}
