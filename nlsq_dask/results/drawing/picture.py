"""A figure that a notebook shows by itself.

This module imports matplotlib. ``figures.py`` loads it when a picture is drawn.
"""

from __future__ import annotations

import io

from matplotlib.figure import Figure


class Picture(Figure):
    """A figure that pyplot does not know, so that it is not kept, and that notebooks show.

    IPython shows a ``Figure`` as a picture only after pyplot was imported. This class draws itself.
    """

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png")
        return buffer.getvalue()
