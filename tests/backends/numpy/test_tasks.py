"""Kernels as tasks: their arguments from words, and their parts on threads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest
from ln_array_api_backends.numpy import array_tasks, tasks, threads
from ln_array_api_backends.numpy.compile import array_type
from numba import njit, types


@njit
def _fill(
    matrix: Any, absent: Any, vector: Any, factor: float, doubles: bool, start: int, stop: int
):
    for row in range(start, stop):
        for column in range(matrix.shape[1]):
            value = factor * vector[column] + row
            matrix[row, column] = 2 * value if doubles else value


def _fill_task(kinds: str) -> Any:
    def task(words: Any, part: int, parts: int) -> None:
        _fill(*tasks.arguments(words, kinds, part, parts))

    return task


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("doubles", [False, True])
@pytest.mark.parametrize("parts", [1, 3])
def test_a_task_fills_an_array_in_parts(dtype: str, doubles: bool, parts: int) -> None:
    matrix, vector = np.zeros((7, 3), dtype), np.asarray([1.0, 2.0, 4.0], dtype)
    task = tasks.Task(
        _fill_task,
        (
            (array_type(dtype, 2), matrix.shape),
            (types.none, None),
            (array_type(dtype, 1), vector.shape),
            (types.float64, -0.5),
            (types.boolean, doubles),
        ),
        7,
        room=24,
    )
    words = task.words[:]
    words[task.places[0]], words[task.places[2]] = matrix.ctypes.data, vector.ctypes.data
    assert task.places[1] == -1
    assert len(words) * 8 == task.room + 24
    address, _ = words.buffer_info()
    for part in range(parts):
        task.call(address, part, parts)
    expected = (-0.5 * vector + np.arange(7)[:, None]) * (1 + doubles)
    np.testing.assert_array_equal(matrix, expected)
    matrix[:] = 0
    threads.run_parallel(address, parts)
    np.testing.assert_array_equal(matrix, expected)
    for size in (0, 1 << 30):  # with the interpreter's lock, and without
        matrix[:] = 0
        run = array_tasks.bind(task, 3, parts, size)
        run(matrix, None, vector)
        np.testing.assert_array_equal(matrix, expected)


def test_other_words_are_left_alone() -> None:
    assert tasks.kinds_of([(types.Array(types.int16, 2, "C"), (1, 2)), (types.none, None)]) == (
        "int16:2 none"
    )


def _add_task(kinds: str) -> Any:
    def task(words: Any, part: int, parts: int) -> None:
        given = tasks.arguments(words, kinds, part, parts)
        words[0] = _sum(given[0], given[1])

    return task


@njit
def _sum(a: int, b: int):
    return a + b


def test_what_is_compiled_for_the_first_time_is_told(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Once: from the disk, it is there at once."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    for number_of_lines in (2, 0):
        tasks.compiled.cache_clear()
        caplog.clear()
        with caplog.at_level("INFO", "ln_array_api"):
            tasks.compiled(_add_task, "int64 int64")
        lines = [record.getMessage() for record in caplog.records]
        assert len(lines) == number_of_lines
        assert all("for int64 int64" in line for line in lines)


def test_a_task_of_too_many_words_is_refused() -> None:
    arguments = [(types.int64, 0)] * array_tasks._MAX_WORDS
    with pytest.raises(ValueError, match="at most 64 words, not 69"):
        array_tasks.bind(tasks.Task(_none_task, arguments, 1), 0, 1, 0)


def _none_task(kinds: str) -> Any:
    def task(words: Any, part: int, parts: int) -> None:
        tasks.arguments(words, kinds, part, parts)

    return task
