"""Ready-made models, with names, formulas and first guesses for their parameters.

``+`` adds models: ``Gaussian() + Gaussian() + Linear()``.
"""

from nlsq_dask.models.base import Sum
from nlsq_dask.models.curves import (
    BiexponentialDecay,
    Constant,
    ExponentialDecay,
    Linear,
    Logistic,
    PowerLaw,
    Sinusoid,
)
from nlsq_dask.models.peaks import Gaussian, Gaussian2D, Lorentzian, Voigt

__all__ = [
    "BiexponentialDecay",
    "Constant",
    "ExponentialDecay",
    "Gaussian",
    "Gaussian2D",
    "Linear",
    "Logistic",
    "Lorentzian",
    "PowerLaw",
    "Sinusoid",
    "Sum",
    "Voigt",
]
