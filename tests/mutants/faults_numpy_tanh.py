"""Faults in the NumPy backend's kernels for dynamic tanh."""

from __future__ import annotations

from fault import NUMPY, Fault, suite, unit

ELEMENTARY, KERNELS = f"{NUMPY}/elementary.py", f"{NUMPY}/tanh.py"
DISPATCH, TASKS = f"{NUMPY}/tanh_dispatch.py", f"{NUMPY}/tasks.py"
TESTS = "backends/numpy/test_tanh.py"
ELEMENTARY_TESTS = "backends/numpy/test_elementary.py"
LAYOUTS = unit(TESTS, "each_layout")

FAULTS = (
    Fault(
        "exp(-2|u|) loses what ln(2) rounded off",
        ELEMENTARY,
        "fma(n, minus_ln2_low, fma(n, minus_ln2, a * broadcast_like(-2.0, a)))",
        "fma(n, minus_ln2, a * broadcast_like(-2.0, a))",
        unit(ELEMENTARY_TESTS, "magnitudes"),
    ),
    Fault(
        "slopes are 0 before they are subnormal",
        ELEMENTARY,
        "at_most(absolute(u), vanishing)",
        "at_most(absolute(u), vanishing * broadcast_like(0.75, u))",
        unit(ELEMENTARY_TESTS, "slopes"),
    ),
    Fault(
        "the power of two of a subnormal slope is a single factor",
        ELEMENTARY,
        "half = fma(shifted - unit, broadcast_like(0.5, u), unit)",
        "half = shifted",
        unit(ELEMENTARY_TESTS, "slopes"),
    ),
    Fault(
        "tanh is positive",
        ELEMENTARY,
        "return with_sign_of(e / divisor, u), slope",
        "return e / divisor, slope",
        suite("tanh", backend="numpy"),
    ),
    Fault(
        "sums include elements after the last one",
        KERNELS,
        "= zero_tail(dgamma_terms, count), zero_tail(dalpha_terms, count)",
        "= dgamma_terms, dalpha_terms",
        unit(TESTS, "behind"),
    ),
    Fault(
        "every part of a task merges the sums when it finishes",
        TASKS,
        "        if increment(words, FINISHED) == num_parts - 1:",
        "        if increment(words, FINISHED) == 0:",
        unit(TESTS, "threads"),
    ),
    Fault(
        "columns that share a parameter count as different",
        KERNELS,
        "reduce_to_parameters(sums, length, repeat, into)",
        "reduce_to_parameters(sums, length, 1, into)",
        LAYOUTS,
    ),
    Fault(
        "the last row of a block is left out",
        KERNELS,
        "min(end, (block + 1) * rows)",
        "min(end, (block + 1) * rows - 1)",
        LAYOUTS,
    ),
    Fault(
        "the compensation of float64 sums is not cleared",
        KERNELS,
        "        clear(dbeta_comp, sums_offset, min(segment, padded - left))\n",
        "",
        unit(TESTS, "nothing_is_left", "threads"),
    ),
    Fault(
        "the parameters of rows follow each other once",
        DISPATCH,
        "return Cut(repeat, size // repeat, parameters)",
        "return Cut(repeat, size // repeat, size // repeat)",
        LAYOUTS,
    ),
    Fault(
        "axes with gaps count as adjacent",
        "ln_array_api/_dispatch/views.py",
        "    if axes[-1] - axes[0] >= len(axes):\n        return view\n",
        "",
        LAYOUTS,
    ),
)
