"""Compile the kernels that most tests run, many at a time, before they are asked for one by one."""

from __future__ import annotations

from collections import defaultdict

from cupy_on_cpu import compile_together
from dispatch import chosen, selected_calls

AT_ONCE = 16


def compile_all() -> None:
    sources, options = chosen()
    by_source = defaultdict(list)
    for name in sorted(selected_calls()):
        by_source[sources[name]].append(name)
    for source, names in by_source.items():
        for start in range(0, len(names), AT_ONCE):
            compile_together(source, names[start : start + AT_ONCE], sorted(options))


if __name__ == "__main__":
    compile_all()
