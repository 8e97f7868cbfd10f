"""Every failure the package can report: statuses, errors, warnings, and their texts.

A status, an error or a warning names a cause and a remedy. Texts that need values are built by the
functions of this package, so that all wording lives in one place and no layer invents its own.
It imports nothing of the other layers, so that every layer may use it.
"""

from nlsq_dask._errors.checkpoints import *
from nlsq_dask._errors.command import *
from nlsq_dask._errors.data import *
from nlsq_dask._errors.ending import *
from nlsq_dask._errors.files import *
from nlsq_dask._errors.input_types import *
from nlsq_dask._errors.kinds import *
from nlsq_dask._errors.labelled import *
from nlsq_dask._errors.lmfit import *
from nlsq_dask._errors.machines import *
from nlsq_dask._errors.memory import *
from nlsq_dask._errors.models import *
from nlsq_dask._errors.options import *
from nlsq_dask._errors.reading import *
from nlsq_dask._errors.results import *
from nlsq_dask._errors.series import *
from nlsq_dask._errors.solver import *
from nlsq_dask._errors.stores import *
from nlsq_dask._errors.units import *
