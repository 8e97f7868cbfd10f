"""How often the 95 % intervals of robust fits cover the truth, by simulation.

``a exp(-b x) + c`` with noise of standard deviation 1, ``--rows`` rows and ``--repeats`` draws:

- noise: normal; Student's with 3 degrees of freedom; normal with a tenth of the rows outliers of
  10 standard deviations on both sides; or on one side;
- mean, least, most: share of the intervals that cover, in per cent, over the three parameters;
- errors / spread: mean standard error over the standard deviation of the estimates, of the
  parameter for which they differ most;
- bias: of the parameter with the largest one, in standard errors.

Bar: symmetric noise, 93 to 97 % for "soft_l1", "huber" and "cauchy", at least 90 % for "arctan".
Outliers on one side have none: a standard error does not know of a bias.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np

from benchmarks.common import Row, arguments, report
from benchmarks.problems import FloatArray
from nlsq_dask import LossScaleWarning, fit

LOSSES = ("soft_l1", "huber", "cauchy", "arctan")
SCALES = (1.0, 2.0, 3.0)
TRUTH = np.array([20.0, 1.3, 5.0])
#: Least and most of the covering shares, in per cent.
BARS = {"arctan": (90.0, 100.0)}
BAR = (93.0, 97.0)

Draw = Callable[[np.random.Generator, int], FloatArray]


def main(argv: Sequence[str] | None = None) -> list[Row]:
    """Run the benchmark and print its table."""
    parser = arguments(__doc__, rows=2000, repeats=2000)
    options = parser.parse_args(argv)
    rows = [
        cover(noise, loss, scale, options.rows, options.repeats)
        for noise in NOISES
        for loss in LOSSES
        for scale in (SCALES if noise == "normal" else SCALES[1:2])
    ]
    return report(f"coverage: 95 % intervals of {options.repeats:,} fits", rows, options.json)


def normal(rng: np.random.Generator, n: int) -> FloatArray:
    """Draw standard normal noise."""
    return rng.normal(size=n)


def heavy(rng: np.random.Generator, n: int) -> FloatArray:
    """Draw noise of Student's distribution with 3 degrees of freedom."""
    return rng.standard_t(3, size=n)


def contaminated(rng: np.random.Generator, n: int) -> FloatArray:
    """Draw normal noise, for a tenth of the rows ten times as wide."""
    noise: FloatArray = rng.normal(size=n) * np.where(rng.random(n) < 0.1, 10.0, 1.0)
    return noise


def one_sided(rng: np.random.Generator, n: int) -> FloatArray:
    """Draw normal noise, to which a tenth of the rows add an exponential with mean 10."""
    noise: FloatArray = rng.normal(size=n) + np.where(
        rng.random(n) < 0.1, rng.exponential(10.0, size=n), 0.0
    )
    return noise


NOISES: dict[str, Draw] = {
    "normal": normal,
    "t(3)": heavy,
    "two-sided outliers": contaminated,
    "one-sided outliers": one_sided,
}


def decay(x: jnp.ndarray, a: float, b: float, c: float) -> jnp.ndarray:
    """Evaluate the model."""
    return a * jnp.exp(-b * x) + c


def cover(noise: str, loss: str, f_scale: float, n: int, repeats: int, seed: int = 1) -> Row:
    """Count the intervals that cover the truth.

    Parameters
    ----------
    noise : str
        One of :data:`NOISES`.
    loss : str
    f_scale : float
        In standard deviations of the noise without outliers.
    n, repeats : int
        Rows of a fit, and fits.
    seed : int
    """
    rng = np.random.default_rng(seed)
    x = np.linspace(0.0, 4.0, n)
    exact = TRUTH[0] * np.exp(-TRUTH[1] * x) + TRUTH[2]
    estimates, errors = np.empty((2, repeats, TRUTH.size))
    hits = np.zeros(TRUTH.size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LossScaleWarning)
        for i in range(repeats):
            y = exact + NOISES[noise](rng, n)
            result = fit(decay, x, y, p0=TRUTH, loss=loss, f_scale=f_scale)
            estimates[i], errors[i] = result.popt, result.perr
            low, high = result.confidence_intervals(0.95).T
            hits += (low < TRUTH) & (high > TRUTH)
    share = 100.0 * hits / repeats
    spread = np.std(estimates, axis=0, ddof=1)
    ratio = np.mean(errors, axis=0) / spread
    bias = (np.mean(estimates, axis=0) - TRUTH) / np.mean(errors, axis=0)
    least, most = BARS.get(loss, BAR)
    row: Row = {"noise": noise, "loss": loss, "f_scale": f_scale}
    if noise != "one-sided outliers":
        met = least <= share.min() and share.max() <= most
        row |= {"bar": f"{least:g} to {most:g}", "met": "yes" if met else "NO"}
    return row | {
        "mean": float(share.mean()),
        "least": float(share.min()),
        "most": float(share.max()),
        "errors / spread": float(ratio[np.argmax(np.abs(ratio - 1.0))]),
        "bias": float(bias[np.argmax(np.abs(bias))]),
    }


if __name__ == "__main__":
    main()
