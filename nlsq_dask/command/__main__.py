"""``python -m nlsq_dask.command`` is the command ``nlsq-dask``."""

import sys

from nlsq_dask.command.main import main

sys.exit(main())
