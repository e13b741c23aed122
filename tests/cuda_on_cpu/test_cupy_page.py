"""The examples in docs/cupy.md, on the simulated device."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import cupy
import ml_dtypes
import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "cupy.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```\n\n```\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own modules
@pytest.mark.parametrize(("code", "output"), EXAMPLES)
def test_examples_print_their_output(code: str, output: str, on_cuda: Any, capsys: Any) -> None:
    exec(code.replace('device="cuda"', 'device="cpu"'), {})
    assert capsys.readouterr().out == output


def test_there_are_examples() -> None:
    assert len(EXAMPLES) == 2


def test_bits_are_those_of_bfloat16() -> None:
    bits = cupy.asarray([0x3F80, 0x4000], dtype="int16")  # 1 and 2
    assert bits.view(ml_dtypes.bfloat16).astype("float32").tolist() == [1.0, 2.0]
