"""Properties of array libraries: namespaces, dtypes, devices, layouts, memory."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, ClassVar

import ml_dtypes
import numpy as np
import pytest

import ln_array_api as ln
from ln_array_api import _arrays
from ln_array_api._arrays import (
    device_of,
    dtype_name,
    is_movable,
    is_unknown,
    library_of,
    native_dtype,
    on_device_of,
    on_device_of_x,
    to_acc_dtype,
)
from ln_array_api._dispatch.cache import cache_plan
from ln_array_api._layout import (
    has_internal_overlap,
    is_same_view,
    is_writable,
    reshape_contiguous,
    share_memory,
)


class FakeDevice:
    """A device that can be made the current one, as CuPy's can."""

    current: ClassVar[list[int]] = [0]

    def __init__(self, number: int) -> None:
        self.id = number

    def __enter__(self) -> None:
        self.current.append(self.id)

    def __exit__(self, *error: object) -> None:
        self.current.pop()


class FakeCuPy:
    """The part of a CuPy array that concerns layout, with the memory of a NumPy array."""

    devices = 1

    def __init__(self, values: np.ndarray) -> None:
        self.values = values
        self.dtype, self.shape, self.itemsize = values.dtype, values.shape, values.itemsize
        self.strides, self.flags = (
            values.strides,
            SimpleNamespace(c_contiguous=values.flags.c_contiguous),
        )
        self.device = FakeDevice(3)
        self.data = SimpleNamespace(ptr=values.__array_interface__["data"][0], device_id=3)
        self.__cuda_array_interface__ = values.__array_interface__

    def __array_namespace__(self, api_version: str | None = None) -> Any:
        return SimpleNamespace(
            __name__="cupy",
            cuda=SimpleNamespace(
                runtime=SimpleNamespace(
                    getDevice=lambda: FakeDevice.current[-1], getDeviceCount=lambda: self.devices
                )
            ),
            ascontiguousarray=lambda x: FakeCuPy(np.ascontiguousarray(x.values)),
            permute_dims=lambda x, axes: FakeCuPy(x.values.transpose(axes)),
        )

    def reshape(self, shape: tuple[int, ...]) -> FakeCuPy:
        return FakeCuPy(self.values.reshape(shape))


def torch_array(values: np.ndarray) -> Any:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    return torch.from_numpy(values)


#: Ways to see a NumPy array as an array of a library whose memory can be looked at.
VIEWED: dict[str, Callable[[np.ndarray], Any]] = {
    "numpy": lambda values: values,
    "torch": torch_array,
    "cupy": FakeCuPy,
}


def importable(module: str) -> Any:
    return pytest.importorskip(module, reason=f"{module} is not installed")


@pytest.mark.parametrize(
    ("module", "name", "writable", "lazy"),
    [
        ("numpy", "numpy", True, False),
        ("torch", "torch", True, False),
        ("jax.numpy", "jax", False, False),
        ("dask.array", "dask", False, True),
        ("array_api_strict", "array_api_strict", True, False),
    ],
)
def test_libraries(module: str, name: str, writable: bool, lazy: bool) -> None:
    x = importable(module).asarray(np.ones((2, 3), np.float32))
    library = library_of(x)
    assert (library.name, library.writable, library.lazy) == (name, writable, lazy)
    assert library_of(x) is library
    assert tuple(library.reshape(x, (3, 2)).shape) == (3, 2)
    assert _arrays.signatures[type(x)](x) == library.signature(x)
    hash(library.signature(x))


def test_an_array_that_shares_a_library_but_not_a_type() -> None:
    class Subclass(np.ndarray):
        pass

    assert library_of(np.ones(2).view(Subclass)).name == "numpy"
    torch = importable("torch")
    assert library_of(torch.nn.Parameter(torch.ones(2))).name == "torch"


@pytest.mark.parametrize("x", [None, 1.0, [1.0], "abc", np.float32, range(3)], ids=repr)
def test_other_objects_have_no_library(x: Any) -> None:
    with pytest.raises(TypeError, match=f"^{type(x).__name__} is not an array of a library"):
        library_of(x)
    assert type(x) not in _arrays._libraries


@pytest.mark.parametrize("kind", [np.ma.MaskedArray, np.matrix])
def test_subclasses_whose_operators_mean_something_else(kind: type) -> None:
    class Derived(kind):  # type: ignore[misc]
        pass

    for each in (kind, Derived):
        x = np.ones((2, 2)).view(each)
        with pytest.raises(TypeError, match=f"^{each.__name__} is not supported"):
            library_of(x)


@pytest.mark.parametrize(
    "module", ["numpy", "torch", "jax.numpy", "dask.array", "array_api_strict"]
)
def test_names_of_dtypes(module: str) -> None:
    xp = importable(module)
    for name in ("float32", "float64", "int32", "bool"):
        if name != "float64" or module != "jax.numpy":  # which has none by default
            dtype = getattr(xp, name)
            assert dtype_name(xp.ones(2, dtype=dtype).dtype) == name


def test_names_of_narrow_dtypes() -> None:
    assert dtype_name(np.dtype(ml_dtypes.bfloat16)) == "bfloat16"
    assert dtype_name(np.dtype(">f4")) == "float32"
    assert dtype_name(importable("torch").bfloat16) == "bfloat16"
    assert dtype_name(importable("jax.numpy").bfloat16.dtype) == "bfloat16"


def test_parameters_may_have_the_dtype_of_x_or_a_wider_one() -> None:
    assert _arrays.PARAMETER_DTYPES.keys() == _arrays.ACCUMULATION.keys()
    for dtype, allowed in _arrays.PARAMETER_DTYPES.items():
        assert allowed[0] == dtype
        assert _arrays.ACCUMULATION[dtype] in allowed


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_accumulate(dtype: Any) -> None:
    x = np.ones(3, dtype)
    xp = library_of(x).xp
    wide = to_acc_dtype(xp, x)
    assert wide.dtype == (np.float64 if dtype is np.float64 else np.float32)
    assert (wide is x) == (wide.dtype == x.dtype)


def test_the_device_of_a_traced_array_is_not_known() -> None:
    jax = importable("jax")
    seen = []
    jax.jit(lambda x: seen.append((device_of(x), is_movable(x))) or x)(jax.numpy.ones(2))
    assert seen == [(None, True)]
    (here,) = jax.devices("cpu")[:1]
    x = jax.numpy.ones(2)
    assert (device_of(x), is_movable(x)) == ({here}, True)
    assert not is_movable(jax.device_put(x, here))
    assert not is_movable(np.ones(2))


def test_unknown_lengths() -> None:
    assert [is_unknown(each) for each in (float("nan"), None, 0, 3)] == [True, True, False, False]


@pytest.mark.parametrize("kind", VIEWED)
def test_signatures_tell_layouts_apart(kind: str) -> None:
    view, values = VIEWED[kind], np.ones((4, 6), np.float32)
    x = view(values)
    signature = library_of(x).signature
    assert signature(x) == signature(view(values.copy()))
    others = [
        values.T,
        values[:3],
        values[:, ::2],
        np.repeat(values, 2, axis=1)[:, ::2],
        values.astype(np.float64),
    ]
    assert len({signature(x), *(signature(view(each)) for each in others)}) == 6


def test_signatures_tell_more_of_numpy_apart() -> None:
    class Subclass(np.ndarray):
        pass

    values = np.ones((4, 6), np.float32)
    unaligned = np.zeros(values.nbytes + 1, np.uint8)[1:].view(np.float32).reshape(4, 6)
    others = [values, unaligned, values.astype(">f4"), values.view(Subclass)]
    assert len({library_of(each).signature(each) for each in others}) == 4


@pytest.mark.parametrize("kind", VIEWED)
def test_contiguous_arrays_are_viewed_and_others_are_copied(kind: str) -> None:
    view, values = VIEWED[kind], np.arange(24, dtype=np.float32).reshape(4, 6)
    library = library_of(view(values))
    assert library.is_contiguous(view(values))
    assert share_memory(reshape_contiguous(view(values), (2, 12)), view(values))
    for strided in (values.T, values[:, ::2]):
        x = view(strided)
        assert not library.is_contiguous(x)
        assert library.is_contiguous(library.ascontiguous(x))
        flat = reshape_contiguous(x, (strided.size,))
        assert not share_memory(flat, view(values))
        values_of = flat.values if kind == "cupy" else flat
        np.testing.assert_array_equal(np.asarray(values_of), strided.reshape(-1))
    back = reshape_contiguous(view(values.T), (4, 6), (1, 0))
    assert share_memory(back, view(values))


def test_cupy_is_recognised_by_its_namespace() -> None:
    x = FakeCuPy(np.ones((2, 3), np.float32))
    library = library_of(x)
    assert (library.name, library.writable, library.lazy) == ("cupy", True, False)
    assert library.signature(x) == (FakeCuPy, np.dtype(np.float32), (2, 3), (12, 4), 3)


@pytest.mark.parametrize("kind", VIEWED)
def test_memory(kind: str) -> None:
    view, values = VIEWED[kind], np.zeros((6, 8), np.float32)
    x = view(values)
    assert is_same_view(x, x)
    assert is_same_view(x, view(values[:]))
    assert not is_same_view(x, view(values.copy()))
    assert not is_same_view(x, view(values[:3]))
    assert not is_same_view(view(values[:, :6]), view(values[:, :6].T))
    assert share_memory(view(values[:4]), view(values[3:]))
    assert not share_memory(view(values[:3]), view(values[3:]))
    assert not share_memory(view(values[:, ::2]), view(values[:, 1::2]))
    assert not share_memory(x, view(values.copy()))
    assert not has_internal_overlap(x)


class OneOfSeveral(FakeCuPy):
    """An array on a device that is not the current one."""

    devices = 4


def test_calls_run_on_the_device_of_their_first_argument() -> None:
    @on_device_of_x
    def current(x: Any, /, *, fails: bool = False) -> int:
        """Give the current device."""
        if fails:
            raise ArithmeticError
        return FakeDevice.current[-1]

    x = OneOfSeveral(np.ones(3))
    assert current(x) == 3
    with on_device_of(x):
        assert current(x) == 3
        assert FakeDevice.current == [0, 3]
    with pytest.raises(ArithmeticError):
        current(x, fails=True)
    assert FakeDevice.current == [0]
    assert (current.__name__, current.__doc__) == ("current", "Give the current device.")
    for other in (FakeCuPy(np.ones(3)), np.ones(3), [1.0], None):
        assert current(other) == 0
        with on_device_of(other):
            assert FakeDevice.current == [0]
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'x'"):
        current()


@pytest.mark.parametrize("kind", [FakeCuPy, OneOfSeveral])
def test_plans_run_on_the_device_that_they_are_made_for(kind: type[FakeCuPy]) -> None:
    class Plan:
        def run(self, x: Any) -> list[int]:
            return [*self.forward(x), FakeDevice.current[-1]]

        def forward(self, x: Any) -> list[int]:
            return [FakeDevice.current[-1]]

    plan, x = Plan(), kind(np.ones(3))
    cache_plan(None, plan, x)
    assert plan.run(x) == ([0, 0] if kind is FakeCuPy else [3, 3])
    assert plan.forward(x) == plan.run(x)[:1]
    assert bool(vars(plan)) == (kind is OneOfSeveral)
    assert FakeDevice.current == [0]


@pytest.mark.parametrize("kind", ["numpy", "cupy"])
def test_broadcast_arrays_overlap_themselves(kind: str) -> None:
    view = VIEWED[kind]
    assert has_internal_overlap(view(np.broadcast_to(np.zeros(3, np.float32), (2, 3))))
    assert not has_internal_overlap(view(np.broadcast_to(np.zeros(3, np.float32), (1, 3))))


def test_broadcast_tensors_overlap_themselves() -> None:
    x = importable("torch").zeros(3)
    assert has_internal_overlap(x.expand(2, 3))
    assert not has_internal_overlap(x.expand(1, 3))


def test_unknown_memory_counts_as_not_shared() -> None:
    x = importable("torch").zeros((2, 3), device="meta")
    assert is_same_view(x, x)
    assert not is_same_view(x, x[:])
    assert not share_memory(x, x)
    assert not has_internal_overlap(x)
    unknown = object()
    assert not share_memory(unknown, unknown)


def test_memory_of_arrays_of_other_libraries() -> None:
    xp = importable("array_api_strict")
    x = xp.zeros((4, 3))
    assert is_same_view(x, x[:, :])
    assert share_memory(x[:3, :], x[2:, :])
    assert not share_memory(x[:2, :], x[2:, :])


def test_writable() -> None:
    x = np.zeros(3)
    assert is_writable(x)
    x.flags.writeable = False
    assert not is_writable(x)
    assert is_writable(importable("torch").zeros(3))
    assert is_writable(FakeCuPy(np.zeros(3)))


def test_a_library_whose_arrays_have_no_reshape_method() -> None:
    xp = importable("array_api_strict")
    x = xp.reshape(xp.arange(6, dtype=xp.float32), (2, 3))
    assert not hasattr(x, "reshape")
    y = ln.layer_norm(x, axis=0, epsilon=0)
    np.testing.assert_array_equal(np.asarray(y), [[-1] * 3, [1] * 3])


def test_out_on_a_device_that_numpy_cannot_see() -> None:
    xp = importable("array_api_strict")
    device = xp.Device("device1")
    x, out = (xp.asarray(np.ones((2, 3), np.float32), device=device) for _ in range(2))
    assert ln.layer_norm(x, out=out) is out


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", ml_dtypes.bfloat16])
def test_results_have_the_native_byte_order_of_a_dtype(dtype: Any) -> None:
    native = np.dtype(dtype)
    for order in "=<>":
        x = np.empty(1, native.newbyteorder(order))
        assert native_dtype(x) == native
        assert native_dtype(x).isnative
