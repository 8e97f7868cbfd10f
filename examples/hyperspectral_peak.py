"""A photoluminescence peak in a hyperspectral cube with bad pixels and cosmic rays.

The data are a labelled cube (y, x, wavelength) of a semiconductor film, in float32, with a flag for
each value: 1 for the bad pixels of the camera, 2 for values that a cosmic ray has hit.

The sum of two models of the package, a Voigt peak and a line as background, is fitted to all pixels
together. Flagged values are masked. The start is the models' own guess.

The picture shows the film at the peak with its flagged pixels, and the mean spectrum with the
fitted curve. The dashed line is the mean of all values, flagged ones included: the mask matters.

Run with ``python examples/hyperspectral_peak.py``.
"""

from __future__ import annotations

import numpy as np
import xarray as xr
from common import BLACK, BLUE, COLOR_MAP, VERMILION, check, picture_path, save
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from nlsq_dask import FitResult, fit, models

MODEL = models.Voigt() + models.Linear()
TRUTH = {
    "amplitude": 240.0,  # counts
    "center": 652.4,  # nanometres
    "sigma": 6.5,
    "gamma": 4.2,
    "slope": 0.35,
    "intercept": -150.0,
}
WAVELENGTHS = np.linspace(600.0, 720.0, 160)
PIXELS = 48
BAD_PIXEL, COSMIC_RAY = 1, 2


def simulate() -> xr.Dataset:
    """Counts and flags of the cube."""
    rng = np.random.default_rng(21)
    shape = (PIXELS, PIXELS, WAVELENGTHS.size)
    clean = np.asarray(MODEL(WAVELENGTHS, *TRUTH.values()))
    counts = rng.normal(clean, np.sqrt(clean), shape)
    flag = np.zeros(shape, dtype="i1")
    flag[rng.random(shape[:2]) < 0.03] = BAD_PIXEL
    flag[rng.random(shape) < 0.002] = COSMIC_RAY
    counts[flag == BAD_PIXEL] = 20.0
    counts[flag == COSMIC_RAY] += rng.exponential(20_000, (flag == COSMIC_RAY).sum())
    dims = ("y", "x", "wavelength")
    return xr.Dataset(
        {
            "counts": (dims, counts.astype("f4"), {"units": "counts"}),
            "flag": (dims, flag),
        },
        {"wavelength": ("wavelength", WAVELENGTHS, {"units": "nm"})},
    )


def draw(data: xr.Dataset, result: FitResult) -> Figure:
    """The image at the peak, and the spectrum with its residuals."""
    figure, axes = plt.subplot_mosaic(
        [["image", "spectrum"], ["image", "residuals"]],
        figsize=(9, 4),
        height_ratios=(2.6, 1),
        width_ratios=(1, 1.1),
        layout="constrained",
    )
    valid = data["counts"].where(data["flag"] == 0)
    at_peak = valid.sel(wavelength=TRUTH["center"], method="nearest")
    image = axes["image"].imshow(at_peak, cmap=COLOR_MAP, vmin=240, vmax=400, origin="lower")
    axes["image"].set_facecolor("white")
    axes["image"].set(xlabel="x (pixels)", ylabel="y (pixels)")
    axes["image"].set_title(f"{float(at_peak.wavelength):.0f} nm; flagged pixels in white")
    figure.colorbar(image, ax=axes["image"], label="counts", shrink=0.85)

    mean, naive = valid.mean(("y", "x")), data["counts"].mean(("y", "x"))
    error = valid.std(("y", "x")) / np.sqrt(valid.count(("y", "x")))
    curve = result.predict(data["wavelength"])
    axes["spectrum"].plot(WAVELENGTHS, naive, "--", lw=1, color=BLACK, label="mean of all values")
    axes["spectrum"].plot(WAVELENGTHS, mean, "o", ms=3, color=BLUE, label="mean without flagged")
    axes["spectrum"].plot(WAVELENGTHS, curve, color=VERMILION, label="fit")
    axes["spectrum"].set_title(f"center: {result.params['center']} nm")
    axes["spectrum"].set(ylabel="counts", ylim=(0, 520))
    axes["spectrum"].legend(frameon=False, fontsize=9)
    axes["spectrum"].sharex(axes["residuals"])
    axes["spectrum"].tick_params(labelbottom=False)
    axes["residuals"].errorbar(WAVELENGTHS, mean - curve, error, fmt="o", ms=2, lw=0.7, color=BLUE)
    axes["residuals"].axhline(0, color=VERMILION)
    axes["residuals"].set(xlabel="wavelength (nm)", ylabel="residual\n(counts)")
    figure.align_ylabels([axes["spectrum"], axes["residuals"]])
    return figure


def main() -> None:
    """Make the cube, fit the peak of all pixels, check the answer, draw the picture."""
    output = picture_path(__doc__, "hyperspectral_peak.png")
    data = simulate()
    result = fit(
        MODEL,
        "wavelength",
        "counts",
        data=data,
        mask=data["flag"] > 0,
        bounds={"sigma": (0, np.inf), "gamma": (0, np.inf)},
    )
    print(result)
    check(result, TRUTH)
    save(draw(data, result), output)


if __name__ == "__main__":
    main()
