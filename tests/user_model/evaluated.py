"""A model as the kernel gets it, and one that is an object, for the tests of models."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from nlsq_dask.user_model.model_spec import call_model

X = np.linspace(0.0, 2.0, 15)


class Line:
    """A callable object; its slope's sign is an attribute of the class."""

    sign = 1.0

    def __init__(self, offset=0.0):
        self.offset = offset

    def __call__(self, x, slope):
        return self.sign * slope * x + self.offset

    def method(self, x, slope, power):
        return slope * x**power + self.offset

    @staticmethod
    def static(x, slope):
        return slope * x


def evaluate(spec, params, coords=(X,)):
    """Value of a model as the kernel gets it: compiled for a spec, and compiled once."""
    with jax.enable_x64(True):
        coords = tuple(jnp.asarray(c) for c in coords)
        return np.asarray(compiled(spec, coords, jnp.asarray(params, jnp.float64)))


@functools.partial(jax.jit, static_argnums=0)
def compiled(spec, coords, params):
    return call_model(spec, coords, params)
