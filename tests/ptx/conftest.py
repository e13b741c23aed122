"""These tests run only by `make -C tests/ptx`, where NVRTC is installed."""

from __future__ import annotations

import os

collect_ignore_glob = [] if "PTX_TESTS" in os.environ else ["*"]
