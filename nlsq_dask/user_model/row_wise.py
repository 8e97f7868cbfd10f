"""Whether a model is row-wise: its value at a row depends on this row's coordinates alone.

Only a row-wise model may be evaluated block by block. With ``x - x.mean()`` every block would take
its own mean, and the fit would be wrong without an error.

The model's jaxpr may prove that the model is row-wise, or that it is not (``row_proof``). If there
is no proof (a loop that runs until all rows have converged, a sort that is undone), evaluations
with numbers decide. They evaluate the same rows in another order, among other rows, and among fewer
and more rows, for several parameters. A row-wise model keeps the values of its rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nlsq_dask._errors import ModelError
from nlsq_dask.core.normal_equations import FloatArray
from nlsq_dask.user_model.jaxprs import ClosedJaxpr, Jaxpr, Literal
from nlsq_dask.user_model.lru import LruTable
from nlsq_dask.user_model.model import MAX_EXAMINATIONS
from nlsq_dask.user_model.model_spec import EXAMINED_ROWS, ModelSpec, trace_model
from nlsq_dask.user_model.row_proof import Kind, verdict
from nlsq_dask.user_model.traces import content, count_operations, operations

# Primes above the numbers of rows in one call of a row-wise evaluation: powers of two from the
# smallest buffer, 2**10, to the staging buffer, 2**18. The last number stands for all larger ones.
ROWS_OF_BUFFERS = (1031, 2053, 4099, 8209, 16411, 32771, 65537, 131_101, 262_147)
MANY_ROWS = ROWS_OF_BUFFERS[-1]

# Most operations of a model that is traced for its largest number of rows. An operation takes some
# 0.1 ms. Models have tens.
MAX_OPERATIONS = 10_000

# A second prime for the trace, for a model with an array whose size is the first prime.
OTHER_ROWS = 1013

# Rows of the evaluations with numbers, beside EXAMINED_ROWS: fewer rows, and more rows than two
# of the kernel's tiles, for effects of a position far behind. Primes again.
FEW_ROWS = 257
LONG_ROWS = 8209

# Largest relative change of a value that counts as rounding: at another place the sum of a row's
# terms may be vectorised otherwise. A loop that runs until all rows have converged leaves values
# that are only as precise as its own tolerance.
ROUNDING = 1e-9
CONVERGENCE = 1e-5

# Most turns of a loop in an evaluation. With made-up coordinates and parameters an iteration may
# never converge. Newton's method takes some ten turns.
MAX_TURNS = 100

_findings: LruTable[tuple[ModelSpec, int], tuple[str | None]] = LruTable(MAX_EXAMINATIONS)

Values = Callable[[Sequence[FloatArray], FloatArray], FloatArray]


def row_dependence(
    spec: ModelSpec,
    params: FloatArray,
    sample: Callable[[], tuple[FloatArray, ...]] | None = None,
    n_rows: int | None = None,
) -> str | None:
    """Find out whether a model's value at a row depends on other rows or on the row's position.

    Parameters
    ----------
    spec : ModelSpec
        The model.
    params : ndarray, shape (p,), float64
        Parameters at which the model makes sense, such as the starting values.
    sample : callable or None
        Returns coordinates of some rows of the data, each (m,) float64. None makes up coordinates.
    n_rows : int or None
        Rows in memory; None for any number. Limits the number of made-up rows, as a model may build
        arrays of its own.

    Returns
    -------
    str or None
        The dependence, as the end of a sentence that begins with "it"; None if the model is
        row-wise. Kept for each spec and size of buffers in a process.
    """
    if spec.whole is not None:
        return spec.whole
    many = next((n for n in ROWS_OF_BUFFERS if n_rows is not None and n > n_rows), MANY_ROWS)
    known = _findings.get((spec, many))
    if known is None:
        rows = None if sample is None else sample()
        known = _findings.keep((spec, many), (_examine(spec, params, rows, many),))
    return known[0]


def _examine(
    spec: ModelSpec, params: FloatArray, sample: tuple[FloatArray, ...] | None, many_rows: int
) -> str | None:
    states, many, uniform = [], None, False
    try:
        for n in (EXAMINED_ROWS, OTHER_ROWS):
            closed = trace_model(spec, n)
            state = verdict(closed, n, spec.n_coords)
            if state.kind < Kind.COUPLED:
                if many is None and _grows(spec, closed, many_rows):
                    return "has more operations for more rows"
                many = many or trace_model(spec, many_rows)
                uniform = content(closed, n) == content(many, many_rows)
            if uniform and state.kind < Kind.UNSURE:
                return None
            states.append(state)
    except ModelError as error:
        return f"fails for some numbers of rows ({error})"
    state = min(states, key=lambda state: state.kind)
    if state.kind == Kind.COUPLED:
        return state.reason
    long = min(LONG_ROWS, many_rows) if uniform else many_rows
    seen = Evaluations(spec, params, sample, long).difference()
    if seen is None:
        return None
    reason = state.reason or "computes something else for another number of rows"
    return f"{reason}; {seen}"


def _grows(spec: ModelSpec, closed: ClosedJaxpr, many_rows: int) -> bool:
    """Whether a model, traced for EXAMINED_ROWS, would have too many operations for many."""
    usual = count_operations(closed)
    if many_rows < 3 * EXAMINED_ROWS:  # the trace takes about as long as for fewer rows
        return False
    try:
        fewer = count_operations(trace_model(spec, FEW_ROWS))
    except ModelError:  # the model needs more rows
        return False
    a_row = (usual - fewer) / (EXAMINED_ROWS - FEW_ROWS)
    return usual + a_row * (many_rows - EXAMINED_ROWS) > MAX_OPERATIONS


class Evaluations:
    """Evaluations of the same rows in other surroundings.

    Parameters
    ----------
    spec : ModelSpec
        The model.
    params : ndarray, shape (p,), float64
        Parameters to start from.
    sample : tuple of ndarray, each of shape (m,), float64, or None
        Rows of the data, beside made-up rows.
    long : int
        Largest number of rows to try.
    """

    def __init__(
        self,
        spec: ModelSpec,
        params: FloatArray,
        sample: tuple[FloatArray, ...] | None,
        long: int,
    ) -> None:
        self._spec = spec
        self._params = np.asarray(params, np.float64)
        self._sample = sample
        self._long = long
        self._random = np.random.default_rng(0)
        self._informative = False

    def difference(self) -> str | None:
        """A change that a row-wise model does not make; None if there is none."""
        usual, fewer, more = (self._values(n) for n in (EXAMINED_ROWS, FEW_ROWS, self._long))
        ranges = list(self._rows(EXAMINED_ROWS))
        for params in self._param_vectors():
            for rows, others in zip(ranges, ranges[1:] + ranges[:1], strict=True):
                seen = self._surroundings(usual, params, rows, others) or self._compare(
                    usual(rows, params)[:FEW_ROWS],
                    fewer([c[:FEW_ROWS] for c in rows], params),
                    "are fewer",
                )
                if seen is not None:
                    return seen
        mixed = [np.resize(c, self._long) for c in np.concatenate(ranges, axis=1)]
        seen = self._surroundings(more, params, mixed, [c[::-1] for c in mixed]) or self._compare(
            usual([c[:EXAMINED_ROWS] for c in mixed], params),
            more(mixed, params)[:EXAMINED_ROWS],
            "are more",
        )
        if seen is not None:
            return seen
        if not self._informative:
            return "no finite value was found that could show it to be row-wise"
        return None

    def _surroundings(
        self,
        values: Values,
        params: FloatArray,
        rows: Sequence[FloatArray],
        others: Sequence[FloatArray],
    ) -> str | None:
        """Compare the values of rows with their values in another order, and among other rows."""
        expected = values(rows, params)
        order = self._random.permutation(len(expected))
        moved = values([c[order] for c in rows], params)
        kept, zero = self._random.random((2, len(expected))) < [[0.5], [0.1]]
        others = [np.where(zero, 0.0, o) for o in others]  # the kernel pads with zeros
        among = values([np.where(kept, c, o) for c, o in zip(rows, others, strict=True)], params)
        return self._compare(expected[order], moved, "come in another order") or self._compare(
            expected[kept], among[kept], "are others"
        )

    def _compare(self, expected: FloatArray, got: FloatArray, change: str) -> str | None:
        finite = np.isfinite(expected) & np.isfinite(got)
        self._informative |= bool(np.count_nonzero(finite) > 1)
        scale = np.median(np.abs(expected[finite])) if finite.any() else 0.0
        same = np.isclose(
            got, expected, rtol=self._tolerance, atol=self._tolerance * scale, equal_nan=True
        )
        if same.all():
            return None
        worst = np.flatnonzero(~same)[0]
        return (
            f"a row's value changes from {expected[worst]:.6g} to {got[worst]:.6g} when the rows "
            f"around it {change}"
        )

    def _values(self, n: int) -> Values:
        """The model for n rows."""
        closed = trace_model(self._spec, n)
        compiled = jax.jit(lambda *inputs: _evaluate(closed.jaxpr, closed.consts, inputs)[0])
        loops = any(eqn.primitive.name == "while" for eqn in operations(closed))
        self._tolerance = CONVERGENCE if loops else ROUNDING

        def values(rows: Sequence[FloatArray], params: FloatArray) -> FloatArray:
            with jax.enable_x64(True):
                return np.asarray(compiled(*rows, params))

        return values

    def _param_vectors(self) -> Iterator[FloatArray]:
        """The given parameters, similar ones (a zero may hide a term), and ones of order 1."""
        p = self._params.shape
        yield self._params
        yield self._random.uniform(0.5, 2.0, p)
        yield self._params * self._random.uniform(0.9, 1.1, p) + self._random.uniform(0.01, 0.1, p)

    def _rows(self, n: int) -> Iterator[list[FloatArray]]:
        """Rows of several ranges, the sample's first."""
        draw = self._random
        count = self._spec.n_coords
        if self._sample is not None and len(self._sample[0]) > 0:
            picked = draw.integers(len(self._sample[0]), size=n)
            yield [np.asarray(c, np.float64)[picked] for c in self._sample]
        yield [draw.uniform(0.0, 1.0, n) for _ in range(count)]
        yield [draw.uniform(-5.0, 5.0, n) for _ in range(count)]
        yield [draw.uniform(0.0, 1000.0, n).round() for _ in range(count)]
        yield [10.0 ** draw.uniform(-3.0, 6.0, n) for _ in range(count)]


def _evaluate(jaxpr: Jaxpr, consts: Sequence[Any], inputs: Sequence[Any]) -> list[Any]:
    """Evaluate a jaxpr; its loops end after ``MAX_TURNS`` turns."""
    known: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
    known |= dict(zip(jaxpr.invars, inputs, strict=True))

    def value(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else known[atom]

    for eqn in jaxpr.eqns:
        arguments = [value(atom) for atom in eqn.invars]
        inner = eqn.params.get("jaxpr") if eqn.primitive.name in ("jit", "pjit") else None
        if inner is not None:
            outputs = _evaluate(inner.jaxpr, inner.consts, arguments)
        elif eqn.primitive.name == "while":
            outputs = _bounded_loop(eqn.params, arguments)
        else:
            primitive: Any = eqn.primitive
            bound = primitive.get_bind_params(eqn.params)
            # A pair in JAX 0.10; the parameters alone in JAX 0.8.
            functions, params = bound if isinstance(bound, tuple) else ((), bound)
            found = primitive.bind(*functions, *arguments, **params)
            outputs = list(found) if primitive.multiple_results else [found]
        known |= dict(zip(eqn.outvars, outputs, strict=True))
    return [value(atom) for atom in jaxpr.outvars]


def _bounded_loop(params: dict[str, Any], arguments: list[Any]) -> list[Any]:
    n_cond, n_body = params["cond_nconsts"], params["body_nconsts"]
    cond_consts, body_consts = arguments[:n_cond], arguments[n_cond : n_cond + n_body]
    cond, body = params["cond_jaxpr"], params["body_jaxpr"]

    def goes_on(state: tuple[jax.Array, list[Any]]) -> jax.Array:
        turn, carry = state
        again = _evaluate(cond.jaxpr, cond.consts, [*cond_consts, *carry])[0]
        return (turn < MAX_TURNS) & jnp.any(again)

    def step(state: tuple[jax.Array, list[Any]]) -> tuple[jax.Array, list[Any]]:
        turn, carry = state
        again = _evaluate(cond.jaxpr, cond.consts, [*cond_consts, *carry])[0]
        new = _evaluate(body.jaxpr, body.consts, [*body_consts, *carry])
        chosen = [
            jnp.where(jnp.reshape(again, again.shape + (1,) * (b.ndim - again.ndim)), b, a)
            for a, b in zip(carry, new, strict=True)
        ]
        return turn + 1, chosen

    start = (jnp.int32(0), [jnp.asarray(a) for a in arguments[n_cond + n_body :]])
    return jax.lax.while_loop(goes_on, step, start)[1]
