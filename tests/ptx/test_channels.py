"""The PTX of the kernels over channels: results, and memory accesses as designed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from channel_cases import DTYPES, ChannelCase, Shape
from fake_cupy import CuPyBackend, Device, Launch, channels_dispatch, patched_device
from parse import PTXError
from source_change import change_source

#: Planes with extents of full vectors and others; short extents, and contiguous channels.
SHAPES: list[Shape] = [
    (3, 2, 128),
    (3, 2, 1030),
    (2, 2, 2051),
    (70, 4, 3),
    (130, 12, 1),
    (1300, 3, 1),
]
KINDS = [(dtype, shape) for dtype in DTYPES for shape in SHAPES]
#: Full sectors, at any vector of a warp.
WHOLE: list[Shape] = [(3, 5, 1024), (40, 2, 256), (512, 64, 1), (64, 32, 4)]


def run(case: ChannelCase, device: Device, offset: int = 0) -> list[Any]:
    def on_device(name: str, values: Any) -> Any:
        return None if values is None else device.memory.array(values, name, offset)

    with patched_device(device):
        arrays = [*map(on_device, ("x", "gamma", "beta", "dy"), case.plain)]
        given = [*map(on_device, ("given mean", "given var"), case.plain_given)]
        backend, need = CuPyBackend(), (True, True, True)
        return case.call(backend, arrays, given, need)  # type: ignore[no-any-return]


@pytest.mark.parametrize(("dtype", "shape"), KINDS)
def test_results(dtype: str, shape: Shape) -> None:
    case = ChannelCase(dtype, shape)
    aligned = run(case, Device())
    case.check(aligned)
    if dtype == "float32":
        unaligned = run(case, Device(), offset=1)
        assert [each.tobytes() for each in aligned] == [each.tobytes() for each in unaligned]


def test_a_large_mean_and_magnitude() -> None:
    for shape in ((3, 2, 1030), (70, 4, 3)):
        case = ChannelCase("float32", shape, mean=1e6)
        case.check(run(case, Device()))
        x = 1e30 * case.plain[3]  # type: ignore[operator]
        case = ChannelCase("float32", shape, x=x)
        case.check(run(case, Device()))


#: How often the kernels of a call read all of x and of dy.
READS = {
    "plane_moments": {"x": 1},
    "column_moments": {"x": 1},
    "channels_normalise": {"x": 1},
    "plane_sums": {"x": 1, "dy": 1},
    "column_sums": {"x": 1, "dy": 1},
    "channels_dx": {"x": 1, "dy": 1},
    "channel_statistics": {},
    "channel_gradients": {},
}


def problems(launch: Launch, size: dict[str, int]) -> Iterator[str]:
    """Yield where a kernel's accesses exceed its design."""
    counters, reads = launch.counters, READS[launch.name]
    for name, traffic in counters.reads.items():
        if name in ("x", "dy"):
            if traffic.bytes != reads[name] * size[name] or traffic.distinct != size[name]:
                yield f"{launch.name} reads {traffic.bytes} bytes of {size[name]} of {name}"
            if traffic.sectors > traffic.least_sectors:
                yield f"{launch.name} reads {name} in {traffic.sectors} sectors"
    for name, traffic in counters.writes.items():
        if traffic.bytes != traffic.distinct:
            yield f"{launch.name} writes {name} again"
        if launch.name.startswith("channels_") and traffic.sectors > traffic.least_sectors:
            yield f"{launch.name} writes {name} in {traffic.sectors} sectors"
    ways = max(counters.shared_reads.ways, counters.shared_writes.ways)
    if ways > 2:
        yield f"{launch.name}: {ways}-way bank conflict"


def found(case: ChannelCase) -> list[str]:
    device = Device()
    run(case, device)
    size = {each.name: each.bytes.size for each in device.memory.allocations}
    return [problem for launch in device.launches for problem in problems(launch, size)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", WHOLE)
def test_the_least_bytes_are_moved(dtype: str, shape: Shape) -> None:
    """X is read twice forward, x and dy twice backward; each result is written once."""
    assert found(ChannelCase(dtype, shape)) == []


@pytest.mark.parametrize(
    ("old", "new", "shape", "seen"),
    [
        (
            "store_vec<ALIGNED>(y + offset, values);",
            'store_vec<ALIGNED>(y + offset, values); asm volatile("" ::: "memory");'
            "store_vec<ALIGNED>(y + offset, values);",
            WHOLE[0],
            "channels_normalise writes",
        ),
        ("PADDING = 128 / int(sizeof(E)) / VEC", "PADDING = 0", WHOLE[3], "bank conflict"),
        (
            "thread_col(int(threadIdx.x) % thread_cols),\n"
            "          thread_row(int(threadIdx.x) / thread_cols)",
            "thread_col(int(threadIdx.x) / thread_rows * 9 % thread_cols),"
            "thread_row(int(threadIdx.x) % thread_rows)",
            WHOLE[2],
            "sectors",
        ),
    ],
    ids=["a result written twice", "conflicting banks", "vectors with gaps"],
)
def test_waste_is_noticed(
    old: str, new: str, shape: Shape, seen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_source(monkeypatch, channels_dispatch, old, new)
    assert any(seen in problem for problem in found(ChannelCase("float32", shape)))


#: More than 2**32 elements, of which only the last channels are not zero. Their blocks are the last
#: or, where a kernel begins at the end, the first.
BEYOND: list[tuple[Shape, int]] = [((1, 131072, 32776), 1), ((8, (1 << 29) + 64, 1), 64)]


def last_channels(shape: Shape, count: int) -> None:
    """Check that the last channels of very many are right."""
    case = ChannelCase("float16", (shape[0], count, shape[2]))
    device = Device(lambda blocks: [*range(min(20, blocks)), *range(max(20, blocks - 20), blocks)])

    def on_device(name: str, values: Any) -> Any:
        whole = shape if values.ndim == 3 else shape[1:2]
        array = device.memory.zeros(whole, values.dtype, name)
        array[(slice(None),) * (values.ndim // 2) + (slice(-count, None),)] = values
        return array

    with patched_device(device):
        arrays = [*map(on_device, ("x", "gamma", "beta", "dy"), case.plain)]
        given = [*map(on_device, ("given mean", "given var"), case.plain_given)]
        results = case.call(CuPyBackend(), arrays, given, (True, True, True))
    case.check([each[:, -count:] if each.ndim == 3 else each[-count:] for each in results])


@pytest.mark.parametrize(("shape", "count"), BEYOND)
def test_indices_beyond_32_bits(shape: Shape, count: int) -> None:
    last_channels(shape, count)


@pytest.mark.parametrize(
    ("old", "new", "kind"),
    [
        ("x + it.offset * VEC, vec", "x + int(it.offset * VEC), vec", 0),
        ("dy + it.offset * VEC, d", "dy + int(it.offset * VEC), d", 0),
        ("const T* ptr = x + start;", "const T* ptr = x + int(start);", 1),
        ("load_vec<ALIGNED>(dy + offset, d)", "load_vec<ALIGNED>(dy + int(offset), d)", 1),
        ("load_vec<ALIGNED>(x + offset, values)", "load_vec<ALIGNED>(x + int(offset), values)", 1),
        ("store_vec<ALIGNED>(y + offset", "store_vec<ALIGNED>(y + int(offset)", 1),
        ("store_vec<ALIGNED>(dx + offset", "store_vec<ALIGNED>(dx + int(offset)", 0),
    ],
)
def test_an_index_of_32_bits_is_found(
    old: str, new: str, kind: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_source(monkeypatch, channels_dispatch, old, new)
    with pytest.raises((PTXError, AssertionError)):
        last_channels(*BEYOND[kind])
