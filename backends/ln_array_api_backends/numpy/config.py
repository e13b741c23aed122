"""Dtypes, and the sizes from which large arrays are handled differently."""

from __future__ import annotations

#: Smallest result that is written with non-temporal stores, since it does not fit in the cache.
NON_TEMPORAL_MIN_BYTES = 12 << 20
#: Smallest row of such results: of whole cache lines, and of other rows.
NON_TEMPORAL_MIN_ROW_BYTES = 512, 2048
CACHE_LINE_BYTES = 64
ITEMSIZE = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}


def accumulation_dtype(name: str) -> str:
    """Return the name of the dtype in which elements of a dtype are computed."""
    return "float64" if name == "float64" else "float32"


def should_use_non_temporal(m: int, size: int) -> bool:
    """Return whether non-temporal stores are faster for a result of m rows and `size` bytes."""
    row = size // m
    min_row = NON_TEMPORAL_MIN_ROW_BYTES[row % CACHE_LINE_BYTES > 0]
    return size >= NON_TEMPORAL_MIN_BYTES and row >= min_row
