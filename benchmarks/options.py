"""Options of the programs that time calls."""

from __future__ import annotations

import argparse
import os
from pathlib import Path


def parse_options(parser: argparse.ArgumentParser, output: str) -> argparse.Namespace:
    """Add the options that all programs have, parse them, and set the number of threads.

    Call this before anything imports NumPy or Numba, which read that number when imported.
    """
    add = parser.add_argument
    add("--threads", type=int, default=2, help="of every contender (default: 2)")
    add("--rounds", type=int, default=9, help="to keep of each case (default: 9)")
    add("--shapes", nargs="*", default=[], help="only these, such as 512x768")
    add("--output", type=Path, help=output)
    options = parser.parse_args()
    for variable in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ[variable] = str(options.threads)
    return options
