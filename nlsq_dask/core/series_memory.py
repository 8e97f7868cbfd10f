"""Memory of the fits of many series: whole series, or sums over frames.

Everything in this module is arithmetic on numbers, before anything runs.
"""

from __future__ import annotations

#: Rows of each series that are fitted in memory before all rows are read.
PILOT_ROWS = 64
