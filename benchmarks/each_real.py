"""Diffusion volumes of a scanner, voxel by voxel, against SciPy.

The small volumes that the package dipy ships (``pip install dipy``): 64 directions at one weighting
and 101 at rising ones. Of each voxel, two models of the mean diffusion:

- one decay, s0 exp(-b D);
- two decays, s0 (f exp(-b D_fast) + (1 - f) exp(-b D_slow)), bounded; of the rising weightings.

SciPy's "trf" starts at our answer. Bar: no voxel that converged is above SciPy's sum of squares by
more than 1e-3 of the variance of a row. ``--pictures FOLDER`` draws the maps.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from benchmarks.common import Row, arguments, judge, report
from benchmarks.each_answers import RIGHT, by_scipy
from benchmarks.problems import FloatArray
from nlsq_dask import ConvergenceWarning, FitMaps, fit_each

VOLUMES = ("small_64D", "small_101D")
ONE = {"p0": {"s0": 500.0, "D": 1.0}, "bounds": {"s0": (0, 1e5), "D": (0, 10)}}
TWO = {
    "p0": {"s0": 500.0, "f": 0.6, "fast": 2.0, "slow": 0.3},
    "bounds": {"s0": (0, 1e5), "f": (0, 1), "fast": (0.5, 20), "slow": (0, 1)},
}


def main(argv: Sequence[str] | None = None) -> list[Row]:
    """Run the benchmark and print its table."""
    parser = arguments(__doc__, voxels=300)
    parser.add_argument("--pictures", type=Path, metavar="FOLDER", help="draw the maps there")
    options = parser.parse_args(argv)
    rows = []
    for volume in VOLUMES:
        b, images = read(volume)
        cases = {"one decay": (one_decay, ONE)}
        if np.unique(b.round(1)).size > 5:
            cases["two decays"] = (two_decays, TWO)
        for name, (model, limits) in cases.items():
            maps, row = compared(b, images, model, limits, options.voxels)
            rows.append({"volume": volume, "model": name} | row)
            if options.pictures is not None:
                draw(maps, options.pictures / f"{volume} {name}.png")
    return report("each_real: voxels", rows, options.json)


def read(volume: str) -> tuple[FloatArray, FloatArray]:
    """Weightings (m,) in 10³ s/mm², and images (m, x, y, z)."""
    import nibabel

    spec = importlib.util.find_spec("dipy")  # its files alone: it imports much
    if spec is None or spec.submodule_search_locations is None:
        raise SystemExit("each_real needs the volumes of dipy: pip install dipy")
    folder = Path(spec.submodule_search_locations[0], "data", "files")
    image = next(folder.glob(f"{volume}.nii*"))
    images = np.moveaxis(np.asarray(nibabel.load(image).dataobj, np.float32), -1, 0)
    b = np.loadtxt(folder / f"{volume}.bval").ravel()
    return np.asarray(b, np.float64) / 1000, images


def one_decay(xp: Any) -> Callable[..., Any]:
    """One decay, in the functions of an array library."""

    def signal(b: Any, s0: Any, D: Any) -> Any:
        return s0 * xp.exp(-b * D)

    return signal


def two_decays(xp: Any) -> Callable[..., Any]:
    """Two decays, in the functions of an array library."""

    def signal(b: Any, s0: Any, f: Any, fast: Any, slow: Any) -> Any:
        return s0 * (f * xp.exp(-b * fast) + (1 - f) * xp.exp(-b * slow))

    return signal


def compared(
    b: FloatArray, images: FloatArray, model: Any, limits: dict[str, Any], most: int
) -> tuple[FitMaps, Row]:
    """The maps of a volume, and how some of its voxels compare with SciPy."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        maps = fit_each(model(jnp), b, images, **limits)
        y = images.reshape(b.size, -1).astype(np.float64)
        chosen = np.random.default_rng(0).permutation(y.shape[1])[:most]
        some = fit_each(model(jnp), b, y[:, chosen], **limits)
    good = np.flatnonzero(np.asarray(some.success))
    low, high = np.array(list(limits["bounds"].values()), float).T
    start = np.clip(some.popt.array[:, good].T, low + 1e-9, high - 1e-9).T
    _, sums = by_scipy(model(np), b, y[:, chosen[good]], start, bounds=(low, high))
    worse = int((above_of(some, good, sums) > RIGHT).sum())
    row: Row = {"voxels": int(y.shape[1]), "converged": float(np.asarray(maps.success).mean())}
    row |= {"compared": good.size, "worse": worse}
    return maps, row | judge(worse, at_most=0)


def above_of(maps: FitMaps, chosen: Any, sums: FloatArray) -> FloatArray:
    """How far the sums of squares of some series exceed SciPy's, in variances of a row."""
    p, chi2 = len(maps.names), np.asarray(maps.chi2)[chosen]
    variance = sums / np.maximum(np.asarray(maps.n_points)[chosen] - p, 1)
    return np.asarray((chi2 - sums) / np.maximum(variance, 1e-300))


def draw(maps: FitMaps, path: Path) -> None:
    """A slice of each map."""
    from matplotlib import pyplot as plt

    path.parent.mkdir(parents=True, exist_ok=True)
    pictures = {name: np.asarray(maps[name]) for name in maps.names}
    pictures |= {f"{name}, error": np.asarray(maps.perr[name]) for name in maps.names}
    pictures["status"] = np.asarray(maps.status, float)
    figure, axes = plt.subplots(
        1, len(pictures), figsize=(2.6 * len(pictures), 2.6), layout="constrained"
    )
    for ax, (name, values) in zip(axes, pictures.items(), strict=True):
        middle = values[..., values.shape[-1] // 2]
        finite = middle[np.isfinite(middle)]
        low, high = np.quantile(finite, (0.02, 0.98)) if finite.size else (0, 1)
        figure.colorbar(ax.imshow(middle, vmin=low, vmax=high), ax=ax)
        ax.set(title=name, xticks=[], yticks=[])
    figure.savefig(path)
    plt.close(figure)


if __name__ == "__main__":
    main()
