"""What docs/cupy.md shows, on the simulated device."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cupy
import ml_dtypes
import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "cupy.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```\n\n```\n(.*?)```", PAGE, re.DOTALL)


def fake_torch(stream: Any) -> Any:
    """As much of torch as the page uses, with arrays of CuPy for tensors."""
    return SimpleNamespace(
        cuda=SimpleNamespace(current_stream=lambda: stream),
        ones=lambda shape, device: cupy.ones(shape, "float32"),
        from_dlpack=cupy.from_dlpack,
    )


@pytest.mark.parametrize(("code", "output"), EXAMPLES)
def test_examples_print_what_they_say(
    code: str, output: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setitem(sys.modules, "torch", fake_torch(cupy.cuda.Stream(non_blocking=True)))
    exec(code, {})
    assert capsys.readouterr().out == output


def test_there_are_examples() -> None:
    assert len(EXAMPLES) == 2


def test_bits_are_those_of_bfloat16() -> None:
    bits = cupy.asarray([0x3F80, 0x4000], dtype="int16")  # 1 and 2
    assert bits.view(ml_dtypes.bfloat16).astype("float32").tolist() == [1.0, 2.0]
