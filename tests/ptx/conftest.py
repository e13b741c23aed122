"""These tests run by `make -C tests/ptx`, where NVRTC is, and not among the library's own."""

from __future__ import annotations

import os

collect_ignore_glob = [] if "PTX_TESTS" in os.environ else ["*"]
