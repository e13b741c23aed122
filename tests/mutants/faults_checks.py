"""Faults in the properties of arrays, in the checks, and in the choice of a backend."""

from __future__ import annotations

from fault import Fault, suite, unit

ARRAYS, LAYOUT, CHECKS, BACKEND = (
    f"ln_array_api/{name}.py" for name in ("_arrays", "_layout", "_dispatch/checks", "backend")
)

OF_ARRAYS = (
    Fault(
        "a transposed square is taken for the same view",
        LAYOUT,
        "(first.shape, first.strides) == (second.shape, second.strides)",
        "first.shape == second.shape",
        unit("test_arrays.py", "test_memory"),
    ),
    Fault(
        "an array overlaps itself only where it is broadcast",
        LAYOUT,
        "if step < extent:",
        "if step == 0:",
        unit("test_checks.py"),
    ),
    Fault(
        "a plan for rows in C order is for those in any other",
        ARRAYS,
        'operator.attrgetter("dtype", "shape", "flags.num")',
        'operator.attrgetter("dtype", "shape")',
        unit("test_rows.py"),
    ),
    Fault(
        "arrays that are not aligned count as contiguous",
        ARRAYS,
        "_C_CONTIGUOUS_AND_ALIGNED = 0x101",
        "_C_CONTIGUOUS_AND_ALIGNED = 0x001",
        unit("test_rows.py", "contiguous"),
    ),
    Fault(
        "arrays in another byte order count as contiguous",
        ARRAYS,
        "return type(x) is np.ndarray and in_c_order and x.dtype.isnative",
        "return type(x) is np.ndarray and in_c_order",
        suite("test_layouts and layer_norm and float32 and swapped", backend="numpy"),
    ),
    Fault(
        "results have the byte order of x",
        ARRAYS,
        'return x.dtype.newbyteorder("=") if isinstance(x.dtype, np.dtype) else x.dtype',
        "return x.dtype",
        suite("native_byte_order"),
    ),
    Fault(
        "memory between the elements of x counts as memory of x",
        LAYOUT,
        "np.shares_memory(first, second)",
        "np.may_share_memory(first, second)",
        unit("test_arrays.py"),
    ),
    Fault(
        "masked arrays are taken for arrays",
        ARRAYS,
        "if isinstance(x, np.ma.MaskedArray | np.matrix):",
        "if isinstance(x, np.matrix):",
        suite("test_errors"),
    ),
    Fault(
        "torch's signature lacks the layout",
        ARRAYS,
        "layout = x.layout, x.is_contiguous(), x.is_neg()",
        "layout = x.layout, x.is_neg()",
        unit("test_arrays.py"),
    ),
)

OF_CHECK = (
    Fault(
        "an epsilon beyond float32 is accepted",
        CHECKS,
        'largest = 3.4e38 if ACCUMULATION[dtype_name(dtype)] == "float32" else math.inf',
        "largest = math.inf",
        unit("test_checks.py"),
    ),
    Fault(
        "out may overlap itself",
        CHECKS,
        "if has_internal_overlap(value):",
        "if False:",
        suite("test_errors"),
    ),
    Fault(
        "out that is not x may overlap parameters",
        CHECKS,
        'else {"x": x, **others}',
        'else {"x": x}',
        suite("test_errors"),
    ),
    Fault(
        "out may be read-only",
        CHECKS,
        "if not is_writable(value):",
        "if False:",
        suite("test_errors"),
    ),
    Fault(
        "out may have another dtype",
        CHECKS,
        "if dtype_name(value.dtype) != dtype_name(x.dtype):",
        "if value.dtype.itemsize < x.dtype.itemsize:",
        suite("test_errors"),
    ),
    Fault(
        "axes are kept in the order in which they are named",
        CHECKS,
        "resolved = tuple(sorted(each % ndim for each in given))",
        "resolved = tuple(each % ndim for each in given)",
        suite("test_axes"),
    ),
    Fault(
        "statistics of 16 bits are accepted",
        CHECKS,
        "allowed = PARAMETER_DTYPES[dtype or dtype_name(x.dtype)]",
        "allowed = PARAMETER_DTYPES[dtype_name(x.dtype)]",
        unit("test_checks.py"),
    ),
    Fault(
        "a shape that would broadcast is accepted",
        CHECKS,
        "a != b and not is_unknown(a) and not is_unknown(b)",
        "a not in (1, b) and not is_unknown(a) and not is_unknown(b)",
        suite("test_errors"),
    ),
    Fault(
        "an axis twice is accepted",
        CHECKS,
        "if len(set(resolved)) < len(resolved):",
        "if False:",
        suite("test_errors"),
    ),
    Fault(
        "a bool is an alpha",
        CHECKS,
        "number = math.nan if isinstance(value, bool) else float(value)",
        "number = float(value)",
        suite("test_wrong_options and power_norm"),
    ),
)

OF_BACKEND = (
    Fault(
        "a backend gets calls that it refuses",
        BACKEND,
        "elif not backend.can_run(primitive, spec):",
        "elif False:",
        unit("test_backend_choice.py"),
    ),
    Fault(
        "the requested backend is not used",
        BACKEND,
        "return [entry for entry in known if entry.name == wanted] or known",
        "return known",
        unit("test_backend.py"),
    ),
    Fault(
        "the requested backend is used after the block",
        BACKEND,
        "    token = _requested.set(name)\n    try:\n        yield\n    finally:\n"
        "        _requested.reset(token)\n",
        "    _requested.set(name)\n    yield\n",
        unit("test_backend.py"),
    ),
    Fault(
        "requesting the generic kernels has no effect",
        BACKEND,
        'if wanted == "generic":',
        'if wanted == "":',
        unit("test_backend.py"),
    ),
    Fault(
        "backends for other libraries are asked",
        BACKEND,
        "known = [each for each in entries().values() if each.library == library]",
        "known = list(entries().values())",
        unit("test_backend_choice.py"),
    ),
    Fault(
        "a backend that breaks while loading breaks the call",
        BACKEND,
        "except Exception as error:  # whatever it is, the call can run without it",
        "except BackendWarning as error:",
        unit("test_backend.py"),
    ),
)

FAULTS = (*OF_ARRAYS, *OF_CHECK, *OF_BACKEND)
