"""The report on predicted speed matches the kernels, and its arithmetic is right."""

from __future__ import annotations

import json
from math import prod
from pathlib import Path

import pytest
from kernel_page import Entry, Range
from predict import (
    BANDWIDTH_FRACTION,
    GPUS,
    LAUNCH_SECONDS,
    SHAPES,
    Count,
    count,
    predictions,
    sample,
)
from report import report

DOCS = Path(__file__).resolve().parents[2] / "docs" / "predicted-speed"
H100 = GPUS[0]
ENTRY = Entry(1, 512, 1, 0, 0, 0, 1, Range(0, 0), {}, {"90": 1})


def test_the_report_is_up_to_date() -> None:
    """Compare some shapes, within a tolerance for other versions of the compiler."""
    table = json.loads(DOCS.with_suffix(".json").read_text())["table"]
    assert report(table) == DOCS.with_suffix(".md").read_text(encoding="utf-8")
    reported = {(row["pass"], row["dtype"], row["shape"]): row for row in table}
    for row in predictions([shape for shape in SHAPES if prod(shape[1:]) < 1 << 23]):
        before = reported[row["pass"], row["dtype"], row["shape"]]
        assert row["kernels"] == before["kernels"], "make predictions"
        for gpu in GPUS:
            assert row[gpu.name]["predicted"] == pytest.approx(
                before[gpu.name]["predicted"], rel=0.05
            ), "make predictions"


def test_a_sample_of_blocks_stands_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    some = count("float32", 600, 768)
    monkeypatch.setattr("predict.sample", range)
    for direction, launches in count("float32", 600, 768).items():
        for each, whole in zip(some[direction], launches, strict=True):
            assert each.blocks == whole.blocks
            assert each.seconds(H100)[0] == pytest.approx(whole.seconds(H100)[0], rel=0.02)
    assert len(sample(600)) < 10
    assert sample(3) == [0, 1, 2]


def test_limits_of_a_launch() -> None:
    def seconds(
        blocks: int, moved: float, instructions: float, vectors: int = 64
    ) -> tuple[float, str]:
        entry = ENTRY._replace(in_flight=vectors, blocks={"90": 2})
        traffic = ((moved, moved, moved),)
        counts = (blocks, blocks, 256, instructions, traffic, (), entry)
        return Count("kernel", *counts).seconds(H100)

    assert seconds(200, 1e3, 1e3) == (pytest.approx(LAUNCH_SECONDS, rel=0.01), "launch")
    memory = 1e9 / (BANDWIDTH_FRACTION * H100.bandwidth)
    assert seconds(1000, 1e9, 1e6) == (pytest.approx(LAUNCH_SECONDS + memory), "memory")
    assert seconds(1, 1e6, 1e3) == (pytest.approx(LAUNCH_SECONDS + 1e6 / 64 / H100.clock), "memory")
    # With 2 blocks of 256 threads and a vector each, 8 KiB are in flight: 1.5 TB/s of 132.
    waiting = (1e9 / (132 * 8192) - 1) * 0.7e-6
    assert seconds(1000, 1e9, 1e6, 1) == (pytest.approx(LAUNCH_SECONDS + waiting), "waits")
    issuing = 1e9 / (4 * 132 * H100.clock)
    assert seconds(1000, 1e6, 1e9) == (pytest.approx(LAUNCH_SECONDS + issuing), "instructions")


def test_data_that_is_read_again() -> None:
    """It comes from L2 if the rows in flight fit."""
    sizes = [(1 << 30, 1 << 30, 3 << 30), (1 << 10, 1 << 10, 1 << 30)]
    rows = 1 << 15  # of 32 KiB: 4 MiB in flight
    reads = tuple(sizes)
    many = Count("kernel", rows, rows, 512, 0, reads, (), ENTRY)
    few = many._replace(rows=1 << 10, blocks=1 << 10)  # of 1 MiB: more than the cache
    assert many.moved(H100, reads) == (1 << 30) + (1 << 10)
    assert many._replace(blocks=1 << 10).moved(H100, reads) == (1 << 30) + (1 << 10)
    assert few.moved(H100, reads) == (3 << 30) + (1 << 10)
