"""Loops that XLA compiles to one function.

On a CPU XLA compiles every part of a loop's body to a function of its own, and calls these from a
list. The sums of a tile by lanes are dozens of parts of a microsecond each, so that the calls take
as long as the sums. JAX 0.12 makes one function of such a loop by itself (XLA's pass "small while
loop hoisting"). JAX 0.10 has this pass for loops of a kibibyte only, but reads the attribute that
the pass sets. There the attribute is set here.

The compiler of one function knows neither sorting nor solvers nor calls of Python. Therefore the
attribute is set for loops of operations with which it was tried.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax.experimental.xla_metadata import set_xla_metadata

from nlsq_dask.user_model.traces import operations

# The releases of JAX with the attribute, and without a pass for loops of this size.
_KNOWN = (0, 10) <= jax.__version_info__[:2] < (0, 11)

# fmt: off
_TRIED = frozenset([
    "abs", "add", "add_any", "and", "atan2", "atan", "acos", "asin", "broadcast_in_dim", "ceil",
    "clamp", "concatenate", "cond", "convert_element_type", "copy", "copy_p", "cos", "cosh",
    "custom_jvp_call", "custom_vjp_call", "div", "dynamic_slice", "eq", "erf", "erfc", "exp",
    "exp2", "expm1", "floor", "ge", "gt", "integer_pow", "iota", "is_finite", "jit", "le", "log",
    "log1p", "logistic", "lt", "max", "min", "mul", "ne", "neg", "not", "or", "pjit", "pow",
    "reduce_sum", "reshape", "round", "rsqrt", "select_n", "sign", "sin", "sinh", "slice", "sqrt",
    "square", "squeeze", "stop_gradient", "sub", "tan", "tanh", "transpose",
])
# fmt: on

# A pytree of arrays.
Carried = TypeVar("Carried")


def is_one_function(body: Callable[[jax.Array, Carried], Carried], zero: Carried) -> bool:
    """Whether a loop over a body may be marked as one function."""
    if not _KNOWN:
        return False
    closed = jax.make_jaxpr(body)(jnp.zeros((), int), zero)
    return _TRIED.issuperset(eqn.primitive.name for eqn in operations(closed))


def looped(
    body: Callable[[jax.Array, Carried], Carried], zero: Carried, n: jax.Array | int
) -> Carried:
    """``jax.lax.fori_loop(0, n, body, zero)``, as one function where that is known to work."""
    if not is_one_function(body, zero):
        found: Carried = jax.lax.fori_loop(0, n, body, zero)
        return found
    called = jax.jit(lambda n: jax.lax.fori_loop(0, n, body, zero))(n)
    leaves, tree = jax.tree.flatten(called)
    # The mark is one of the call, which all results share.
    mark = {"xla_cpu_small_call": "true", "inlineable": "false"}
    leaves[0] = set_xla_metadata(leaves[0], **mark)  # type: ignore[no-untyped-call]
    marked: Carried = jax.tree.unflatten(tree, leaves)
    return marked
