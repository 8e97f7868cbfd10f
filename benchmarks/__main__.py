"""``python -m benchmarks``: every benchmark in turn, each in a process of its own.

Left out are ``nlsq_reference``, which installs a package from the index, and ``each_real``, which
needs the volumes of a package that is not installed with this one.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

#: Each with the options of a full run.
RUNS: dict[str, list[str]] = {
    "kernel": [],
    "derivatives": [],
    "in_memory": [],
    "small_fit": [],
    "streaming": [],
    "passes": [],
    "losses": [],
    "robust_pass": [],
    "gpu": [],
    "coverage": [],
    "whole_fit": [],
    "cached": [],
    "pages": [],
    "broadcast": [],
    "collapse": [],
    "memory": [],
    "budget": [],
    "overhead": [],
    "small_chunks": [],
    "planning": [],
    "object_store": [],
    "scaling": [],
    "nist_table": ["--replicate", "1000"],
    "mgh": [],
    "units": [],
    "evaluations": [],
    "each": [],
    "each_answers": [],
    "each_starts": [],
    "each_store": [],
    "each_alone": [],
    "each_fuzz": [],
    "fuzz": ["files"],
    "soak": [],
    "faults": [],
}


def main() -> int:
    """Run them, and return the number of those that failed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(RUNS)}")
    parser.add_argument("--json", type=Path, metavar="FOLDER", help="write NAME.json files there")
    options = parser.parse_args()
    if unknown := set(options.names) - set(RUNS):
        parser.error(f"no benchmark is called {', '.join(sorted(unknown))}")
    failed = 0
    for name in options.names or RUNS:
        command = [sys.executable, "-m", f"benchmarks.{name}", *RUNS[name]]
        if options.json is not None:
            options.json.mkdir(parents=True, exist_ok=True)
            command += ["--json", str(options.json / f"{name}.json")]
        failed += subprocess.run(command, check=False).returncode != 0
    return failed


if __name__ == "__main__":
    sys.exit(main())
