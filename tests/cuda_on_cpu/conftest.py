"""These tests run under the plugin alone, by `make test-cuda`, and not among the library's own."""

from __future__ import annotations

import sys

collect_ignore_glob = [] if "cupy_on_cpu" in sys.modules else ["*"]
