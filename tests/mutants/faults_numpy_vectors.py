"""Faults in the NumPy backend's vector operations, and in its sums of gradients."""

from __future__ import annotations

from fault import NUMPY, Fault, unit
from faults_numpy_rows import SUMS, rows

SIMD, DOUBLES, VECTOR_MEMORY = (
    f"{NUMPY}/{name}.py" for name in ("simd", "doubles", "vector_memory")
)

OF_VECTORS = (
    Fault(
        "both halves of a vector of float32 are the first",
        DOUBLES,
        "pair = builder.fadd(total, first), builder.fadd(more, last)",
        "pair = builder.fadd(total, first), builder.fadd(more, first)",
        rows("test_row_accuracy and test_forward_lengths and float32"),
    ),
    Fault(
        "float64 loses what its sums round off",
        DOUBLES,
        "pair = new, builder.fadd(more, compensation)",
        "pair = new, more",
        unit("backends/numpy/test_doubles.py"),
    ),
    Fault(
        "a sum with an infinity is NaN",
        DOUBLES,
        "return builder.select(known, compensation, ir.Constant(compensation.type, None))",
        "return lost",
        unit("backends/numpy/test_doubles.py"),
    ),
    Fault(
        "NaN is at most any number",
        SIMD,
        'above = builder.fcmp_unordered(">", *args[:2])',
        'above = builder.fcmp_ordered(">", *args[:2])',
        unit("backends/numpy/test_simd.py", "at_most"),
    ),
    Fault(
        "lanes beyond the first ones are kept",
        SIMD,
        "return builder.select(prefix_mask(builder, args[1], vector.lanes), args[0], zero)",
        "return args[0]",
        rows("test_row_accuracy and test_backward_lengths and float32"),
    ),
    Fault(
        "an fma is rounded twice",
        SIMD,
        'return call_lanewise(builder, "fma", a, b, c)',
        "return builder.fadd(builder.fmul(a, b), c)",
        unit("backends/numpy/test_simd.py", "arithmetic"),
    ),
    Fault(
        "bfloat16 rounds halves away from zero",
        VECTOR_MEMORY,
        "constant(0x7FFF)",
        "constant(0x8000)",
        unit("backends/numpy/test_vector_memory.py", "nearest_even"),
    ),
    Fault(
        "bfloat16 is cut off",
        VECTOR_MEMORY,
        "rounded = builder.add(builder.add(bits, constant(0x7FFF)), odd)",
        "rounded = bits",
        rows("test_forward_lengths and bfloat16 and layer_norm and 384"),
    ),
)

OF_GRADIENT_SUMS = (
    Fault(
        "the fourth vector of sums is the third",
        SUMS,
        "store(sums, j + 3 * width, sum_in_dtype(d, rest_d, ones_vec))",
        "store(sums, j + 3 * width, sum_in_dtype(c, rest_c, ones_vec))",
        rows("test_large and test_rows and vectors and layer_norm"),
    ),
    Fault(
        "the second of two rows is left out of dbeta",
        SUMS,
        "load(dbeta, grad_offset, d0) + (d0 + d1)",
        "load(dbeta, grad_offset, d0) + (d0 + d0)",
        rows("test_backward_lengths and float32 and layer_norm and 384"),
    ),
    Fault(
        "the first block of rows is added up for all",
        SUMS,
        "load_vector(sums, i, count, ones_vec)",
        "load_vector(sums, j, count, ones_vec)",
        rows("test_many_rows and layer_norm"),
    ),
)

FAULTS = (*OF_VECTORS, *OF_GRADIENT_SUMS)
