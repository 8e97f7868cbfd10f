"""How the rows of a model's inputs reach the rows of its value, read off its jaxpr.

A model is row-wise if its value at a row is a function of that row alone. The jaxpr of a model,
traced for n rows with n a distinctive prime, says so step by step: every array in it is in one of
the states of ``row_state``, which follows from the operation that makes it and the states of its
inputs. The states SAME and ROW of a model's value prove that it is row-wise. COUPLED is given only
where rows are truly summed, accumulated or combined; whatever is not understood is UNSURE.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var

from nlsq_dask.user_model.row_rules import CUMULATIVE, LONG_ARRAY, REDUCTIONS, rule_of, shape_of
from nlsq_dask.user_model.row_state import (
    ELEMENT,
    SAME,
    Kind,
    State,
    coupled,
    join,
    position,
    row,
    unsure,
)

# fmt: off
# Other operations have parameters that are jaxprs, too, but call them on something else.
_CALLS = frozenset([
    "checkpoint", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call",
    "custom_vjp_call_jaxpr", "jit", "pjit", "remat", "remat2",
])
# fmt: on
_VERBS = {
    "argmax": "searches",
    "argmin": "searches",
    "cumsum": "accumulates over",
    "cumprod": "accumulates over",
    "dot_general": "sums over",
    "fft": "transforms",
    "reduce_max": "takes the maximum of",
    "reduce_min": "takes the minimum of",
    "reduce_prod": "multiplies",
    "reduce_sum": "sums over",
}


def verdict(closed: ClosedJaxpr, n: int, n_coords: int) -> State:
    """State of a model's value: SAME or ROW proves that it is row-wise.

    Parameters
    ----------
    closed : ClosedJaxpr
        A model traced for n rows; its inputs are coordinates (n,) and then parameters (p,).
    n : int
        Number of rows.
    n_coords : int
        Number of coordinates.

    Returns
    -------
    State
        Of one of the kinds SAME, ROW, UNSURE and COUPLED.
    """
    inputs = [row(0)] * n_coords + [SAME] * (len(closed.jaxpr.invars) - n_coords)
    state = RowStructure(n).run(closed, inputs)[0]
    if state.kind == Kind.POSITION:
        return coupled("depends on the position of a row in the data")
    return state


class RowStructure:
    """States of the arrays of one jaxpr.

    Parameters
    ----------
    n : int
        Number of rows that it was traced for.
    """

    def __init__(self, n: int) -> None:
        self.n = n

    def run(self, closed: ClosedJaxpr | Jaxpr, inputs: Sequence[State]) -> list[State]:
        """States of the outputs, given those of the inputs."""
        jaxpr: Jaxpr = closed.jaxpr if isinstance(closed, ClosedJaxpr) else closed
        consts = closed.consts if isinstance(closed, ClosedJaxpr) else []
        known: dict[Var, State] = dict(zip(jaxpr.invars, inputs, strict=True))
        known |= dict(zip(jaxpr.constvars, map(self._const, consts), strict=True))

        def state(atom: Any) -> State:
            return SAME if isinstance(atom, Literal) else known[atom]

        for eqn in jaxpr.eqns:
            outputs = self._apply(eqn, [state(atom) for atom in eqn.invars])
            for var, output in zip(eqn.outvars, outputs, strict=True):
                known[var] = self._checked(output, shape_of(var))
        return [state(atom) for atom in jaxpr.outvars]

    def is_rows(self, size: object) -> bool:
        """Whether an axis of this size is one of the rows."""
        return size == self.n

    def _const(self, value: Any) -> State:
        """State of an array that the model closes over."""
        axes = [axis for axis, size in enumerate(np.shape(value)) if self.is_rows(size)]
        if not axes:
            return SAME
        array = np.asarray(value)
        first = array[
            tuple(slice(1) if axis in axes else slice(None) for axis in range(array.ndim))
        ]
        if np.array_equal(array, np.broadcast_to(first, array.shape), equal_nan=True):
            return SAME
        return position(axes[0]) if len(axes) == 1 else unsure(LONG_ARRAY)

    def _checked(self, state: State, shape: tuple[int, ...]) -> State:
        """A state, given up where not exactly the axis that it names has the size of the rows."""
        if state.kind == Kind.SAME or state.kind >= Kind.UNSURE:
            return state
        found = [axis for axis, size in enumerate(shape) if self.is_rows(size)]
        expected = [state.axis] if state.has_axis else []
        return state if found == expected else unsure("combines each row with all rows")

    def _apply(self, eqn: JaxprEqn, states: list[State]) -> list[State]:
        name = eqn.primitive.name
        control = _CONTROL.get(name)
        if control is not None:
            return control(self, eqn, states)
        inner = _called_jaxpr(eqn)
        if inner is not None:
            return self.run(inner, states)
        removed = self._reduced(eqn)
        if removed is not None:
            return [removed] * len(eqn.outvars)
        mixed = join([state for state in states if not state.has_axis])
        if mixed.kind >= Kind.UNSURE:
            return [mixed] * len(eqn.outvars)
        if eqn.effects:  # it may change what another operation reads
            return [unsure(f"uses {name}")] * len(eqn.outvars)
        if mixed.kind == Kind.ELEMENT:  # whatever the operation, it sees one row
            return [join(states)] * len(eqn.outvars)
        result = rule_of(name)(self.n, eqn, states)
        return result if isinstance(result, list) else [result] * len(eqn.outvars)

    def _reduced(self, eqn: JaxprEqn) -> State | None:
        """State of a result for which an axis of the rows' size is summed or accumulated away."""
        name = eqn.primitive.name
        shape = shape_of(eqn.invars[0]) if eqn.invars else ()
        if name in REDUCTIONS:
            axes = eqn.params["axes"]
        elif name in CUMULATIVE:
            axes = (eqn.params["axis"],)
        elif name == "fft":
            axes = range(len(shape) - len(eqn.params["fft_lengths"]), len(shape))
        elif name == "dot_general":
            axes = eqn.params["dimension_numbers"][0][0]
        else:
            return None
        if not any(self.is_rows(shape[axis]) for axis in axes):
            return None
        if name in ("reduce_and", "reduce_or", "reduce_xor"):
            return unsure("tests a condition on all rows at once")
        return coupled(f"{_VERBS.get(name, 'combines')} all rows ({name})")


def _called_jaxpr(eqn: JaxprEqn) -> ClosedJaxpr | Jaxpr | None:
    """The jaxpr that a call runs on its inputs as they are."""
    if eqn.primitive.name not in _CALLS:
        return None
    for name in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        inner = eqn.params.get(name)
        if isinstance(inner, ClosedJaxpr | Jaxpr) and _arity(inner) == len(eqn.invars):
            return inner
    return None


def _arity(jaxpr: ClosedJaxpr | Jaxpr) -> int:
    return len((jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr).invars)


def _scan(rows: RowStructure, eqn: JaxprEqn, states: list[State]) -> list[State]:
    n_consts, n_carry = eqn.params["num_consts"], eqn.params["num_carry"]
    over_rows = rows.is_rows(eqn.params["length"])
    consts, carry = states[:n_consts], states[n_consts : n_consts + n_carry]
    items = [_scanned(state) for state in states[n_consts + n_carry :]]
    if over_rows:
        carry = [join([state, unsure("goes from row to row (scan)")]) for state in carry]
    while True:  # ends, as joined states only rise
        outputs = rows.run(eqn.params["jaxpr"], [*consts, *carry, *items])
        new = [join(pair) for pair in zip(carry, outputs[:n_carry], strict=True)]
        if new == carry:
            break
        carry = new
    return carry + [_stacked(state, over_rows) for state in outputs[n_carry:]]


def _scanned(state: State) -> State:
    """State of one item of an array that is looped over along its first axis."""
    if state.axis is None:
        return state
    if state.axis > 0:
        return state.at(state.axis - 1)
    return ELEMENT if state.kind == Kind.ROW else unsure("counts rows (scan)")


def _stacked(state: State, over_rows: bool) -> State:
    """State of the array of a loop's items."""
    if state.axis is not None:
        return state.at(state.axis + 1)
    if over_rows and state.kind == Kind.ELEMENT:
        return row(0)
    return unsure(LONG_ARRAY) if over_rows and state.kind == Kind.SAME else state


def _while(rows: RowStructure, eqn: JaxprEqn, states: list[State]) -> list[State]:
    n_cond, n_body = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    cond_consts, body_consts = states[:n_cond], states[n_cond : n_cond + n_body]
    carry = states[n_cond + n_body :]
    while True:  # ends, as joined states only rise
        outputs = rows.run(eqn.params["body_jaxpr"], [*body_consts, *carry])
        going = rows.run(eqn.params["cond_jaxpr"], [*cond_consts, *carry])[0]
        new = []
        for before, after, var in zip(carry, outputs, eqn.outvars, strict=True):
            state = join([before, after])
            # A condition for each row (a loop under vmap) stops each row by itself.
            by_row = going.axis is None or rows.is_rows((*shape_of(var), 0)[going.axis])
            new.append(join([state, _controlling(going) if by_row else unsure(_LOOP)]))
        if new == carry:
            return carry
        carry = new


_LOOP = "decides by all rows how often to repeat or which way to go"


def _controlling(state: State) -> State:
    """State that a condition lends to what it decides about."""
    return unsure(_LOOP) if state.kind >= Kind.POSITION else state


def _cond(rows: RowStructure, eqn: JaxprEqn, states: list[State]) -> list[State]:
    branches = [rows.run(branch, states[1:]) for branch in eqn.params["branches"]]
    control = _controlling(states[0])
    return [join([control, *outputs]) for outputs in zip(*branches, strict=True)]


def _linear_solve(rows: RowStructure, eqn: JaxprEqn, states: list[State]) -> list[State]:
    lengths = eqn.params["const_lengths"]
    start = lengths.matvec + lengths.vecmat
    consts = states[start : start + lengths.solve]
    sides = states[sum(lengths) :]
    return rows.run(eqn.params["jaxprs"].solve, [*consts, *sides])


_CONTROL: dict[str, Callable[[RowStructure, JaxprEqn, list[State]], list[State]]] = {
    "cond": _cond,
    "custom_linear_solve": _linear_solve,
    "scan": _scan,
    "while": _while,
}
