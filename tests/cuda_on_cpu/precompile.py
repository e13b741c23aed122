"""Compile the kernels that most tests run, many at a time, before tests request them one by one."""

from __future__ import annotations

from collections import defaultdict

from cupy_on_cpu import compile_together
from kernel_inventory import kernels_in_use, selected_calls

KERNELS_PER_LIBRARY = 16


def compile_all() -> None:
    sources, options = kernels_in_use()
    by_source = defaultdict(list)
    for name in sorted(selected_calls()):
        by_source[sources[name]].append(name)
    for source, names in by_source.items():
        for start in range(0, len(names), KERNELS_PER_LIBRARY):
            compile_together(source, names[start : start + KERNELS_PER_LIBRARY], sorted(options))


if __name__ == "__main__":
    compile_all()
