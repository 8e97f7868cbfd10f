"""What the scripts of the gallery share: the command line, the check of the answer, the picture.

The data of each script are made from known parameters. So each script can check its own fit: it
ends with an error if an estimate is more than five standard errors away from the truth.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Mapping
from pathlib import Path

import matplotlib as mpl

from nlsq_dask import FitResult

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from PIL import Image

plt.rcParams.update({"axes.titlesize": 10, "axes.titlelocation": "left"})

# Colours from Okabe and Ito's palette, which colour-blind readers can tell apart.
BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
BLUE, VERMILION = "#0072B2", "#D55E00"

# A correct fit passes this limit in one of 1.7 million cases, if its noise is normal.
MOST_ERRORS = 5.0

DOTS_PER_INCH = 90
# Of maps, in steps: noise in fewer colours takes fewer bytes in a file.
COLOR_MAP = plt.get_cmap("cividis", 20)


def picture_path(description: str | None, default: str) -> Path:
    """Read the command line: ``--out`` is where the picture goes."""
    parser = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    parser.add_argument(
        "--out", type=Path, default=Path(default), help="where the picture goes (%(default)s)"
    )
    path: Path = parser.parse_args().out
    return path


def check(result: FitResult, truth: Mapping[str, float]) -> None:
    """Print each estimate beside the truth, and end with an error if they disagree."""
    print(f"\n{'parameter':<12} {'estimate':<22} {'truth':<10} standard errors away")
    distances = {}
    for name, estimate, error in zip(result.names, result.popt, result.perr, strict=True):
        distances[name] = (estimate - truth[name]) / error
        print(f"{name:<12} {result.params[name]!s:<22} {truth[name]:<10g} {distances[name]:+.1f}")
    wrong = [name for name, distance in distances.items() if not abs(distance) <= MOST_ERRORS]
    if wrong or not result.success:
        sys.exit(f"The fit does not recover the truth: {', '.join(wrong) or result.message}")


def save(figure: Figure, path: Path) -> None:
    """Write the picture, and say where it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=DOTS_PER_INCH)
    # A palette takes a third of the bytes. This method keeps all colours within 4 %.
    image = Image.open(drawn).convert("RGB")
    image.quantize(256, method=Image.Quantize.MAXCOVERAGE).save(path, optimize=True)
    plt.close(figure)
    print(f"\npicture: {path}")
