"""Conformance and speed of the CUDA kernels on a GPU: `make gpu` and `make gpu-conformance`."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
#: Folders that hold the packages of this repository, which need not be installed.
ROOMS = (ROOT, ROOT / "backends", ROOT / "conformance")

sys.path[:0] = [str(each) for each in ROOMS]
