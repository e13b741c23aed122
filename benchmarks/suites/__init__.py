"""Suites for asv, which tracks time and memory over the revisions of this repository."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # where the cases are that all tools share
