"""Faults in views and plans, from a call to its kernel."""

from __future__ import annotations

from fault import Fault, suite, unit

ROWS, PLANS, CHANNELS, VIEWS, CACHE, SCALED = (
    f"ln_array_api/_dispatch/{name}.py"
    for name in ("rows", "plans", "channels", "views", "cache", "scaled")
)
#: How the key of a plan over channels begins.
CHANNELS_KEY = """key = (
            primitive,
            options,
            requested_backend(),
            *["""

OF_ROWS = (
    Fault(
        "out is written as rows where axes are permuted",
        PLANS,
        "fits = not self.view.permutation and library.is_contiguous(out)",
        "fits = library.is_contiguous(out)",
        unit("test_rows_out.py"),
    ),
    Fault(
        "out of another layout is not written",
        PLANS,
        "            out[...] = self._from_kernel[0](y)\n",
        "            pass\n",
        suite("test_out", backend="numpy"),
    ),
    Fault(
        "a forward plan is for every backend",
        ROWS,
        "            epsilon,\n            gamma_offset,\n"
        "            operation,\n            requested_backend(),\n",
        "            epsilon,\n            gamma_offset,\n            operation,\n",
        unit("test_backend_choice.py"),
    ),
    Fault(
        "a backward plan is for every backend",
        ROWS,
        "            need,\n            gamma_offset,\n"
        "            operation,\n            requested_backend(),\n",
        "            need,\n            gamma_offset,\n            operation,\n",
        unit("test_rows.py", "asked_for"),
    ),
    Fault(
        "a forward plan is for layer norm and RMS norm alike",
        ROWS,
        "            epsilon,\n            gamma_offset,\n            operation,\n",
        "            epsilon,\n            gamma_offset,\n",
        unit("test_rows.py", "with_a_mean_or_without"),
    ),
    Fault(
        "a forward plan is for every epsilon",
        ROWS,
        "            over,\n            epsilon,\n",
        "            over,\n",
        suite("test_forward_values"),
    ),
    Fault(
        "a backward plan is for any need",
        ROWS,
        "            over,\n            need,\n            gamma_offset,\n            operation,\n",
        "            over,\n            gamma_offset,\n            operation,\n",
        suite("test_interface and test_need"),
    ),
    Fault(
        "a backward plan is for gamma of any dtype",
        ROWS,
        "            find[type(gamma)](gamma),\n            find[type(beta)](beta),\n"
        "            find[type(where)](where),\n            over,\n            need,\n",
        "            find[type(beta)](beta),\n            find[type(where)](where),\n"
        "            over,\n            need,\n",
        suite("test_wider_parameters", "test_parameters_are_optional"),
    ),
    Fault(
        "a rstd wider than the accumulation dtype reaches a kernel",
        PLANS,
        "return xp.astype(values, getattr(xp, acc_dtype), copy=False)",
        "return values",
        unit("test_rows.py"),
    ),
    Fault(
        "plain rows with a wide rstd reach a kernel unconverted",
        PLANS,
        "<= {None, ACCUMULATION[dtype]}\n",
        "<= {None, *ACCUMULATION}\n",
        unit("test_rows.py"),
    ),
    Fault(
        "rows of another layout reach a kernel uncopied",
        PLANS,
        "all(each is None or library_of(each).is_contiguous(each) for each in arrays)",
        "all(True for each in arrays)",
        unit("test_rows.py", "made_contiguous"),
    ),
    Fault(
        "dbeta in a wider dtype than gamma loses digits",
        PLANS,
        "return (sums_further or differs) and given != ACCUMULATION[dtype]",
        "return False",
        unit("test_rows.py", "wider_beta"),
    ),
    Fault(
        "gradients of parameters have the dtype of x",
        PLANS,
        "return [each for each in arrays if each is not None][-1]",
        "return [each for each in arrays if each is not None][0]",
        suite("test_wider_parameters"),
    ),
    Fault(
        "out is not checked against gamma and beta",
        ROWS,
        "checks.out(func_name, out, x, others)",
        "checks.out(func_name, out, x, {})",
        suite("test_errors"),
    ),
    Fault(
        "dgamma is computed where there is no gamma",
        ROWS,
        '"dgamma" in needed and gamma is not None, ',
        '"dgamma" in needed, ',
        suite("test_gradients_of_absent_inputs"),
    ),
    Fault(
        "dgamma is not in the shape of the normalised axes",
        PLANS,
        "Conversion(flat, reshaper(library, view.parameter), (math",
        "Conversion(flat, lambda values: values, (math",
        suite("test_axes"),
    ),
    Fault(
        "a wrong beta is accepted",
        ROWS,
        "given = {names.gamma: gamma, names.beta: beta}",
        "given = {names.gamma: gamma}",
        unit("test_checks.py"),
    ),
    Fault(
        "out may overlap x in a repeated call",
        PLANS,
        "if overlaps is None or (out is not x and overlaps(out, x)):",
        "if overlaps is None:",
        unit("test_rows_out.py", "repeated_call"),
    ),
    Fault(
        "out may overlap gamma in a repeated call",
        PLANS,
        "(gamma is not None and overlaps(out, gamma))",
        "False",
        unit("test_rows_out.py", "repeated_call"),
    ),
    Fault(
        "out that owns its memory is never checked for overlap",
        PLANS,
        "if self._inputs_own and library.owns_memory(out):",
        "if library.owns_memory(out):",
        unit("test_rows_out.py", "views_of_out"),
    ),
    Fault(
        "only arrays with the same address count as overlapping",
        "ln_array_api/_arrays.py",
        "return bool(first < second + b.nbytes and second < first + a.nbytes)",
        "return bool(first == second)",
        unit("test_rows_out.py", "repeated_call and torch"),
    ),
)

OF_CACHE = (
    Fault(
        "a plan over channels is for every backend",
        CACHE,
        "            requested_backend(),\n",
        "",
        unit("test_channels.py"),
    ),
    Fault(
        "a plan over channels is for every epsilon and axis",
        CACHE,
        "            options,\n",
        "",
        suite("test_accuracy and batch_norm"),
    ),
    Fault(
        "an axis of 1.0 finds the plan for 1",
        CACHE,
        "            *map(type, options),  # 1, 1.0 and True are equal\n",
        "",
        unit("test_channels.py", "types"),
    ),
    Fault(
        "the cache of plans is unbounded",
        CACHE,
        "if len(plans) >= _MAX_PLANS:",
        "if False:",
        unit("test_backend_choice.py"),
    ),
)

OF_CHANNELS = (
    Fault(
        "channels of another layout reach a kernel uncopied",
        CHANNELS,
        "and are_contiguous(arrays)",
        "and are_contiguous(())",
        unit("test_channels.py"),
    ),
    Fault(
        "wide statistics of channels reach a kernel unconverted",
        CHANNELS,
        "and have_acc_dtype(spec.dtype, acc_arrays)",
        "and have_acc_dtype(spec.dtype, ())",
        unit("test_channels.py"),
    ),
    Fault(
        "training accepts a channel of one value",
        CHANNELS,
        "if spec.shape[0] * spec.shape[2] < 2:",
        "if spec.shape[0] * spec.shape[2] < 1:",
        unit("test_batch_norm.py", "more_than_one_value"),
    ),
    Fault(
        "mean and rstd over channels are not checked",
        CHANNELS,
        "    checks.saved(func_name, x, spec.shape[1:2], mean=mean, rstd=rstd)\n",
        "",
        suite("test_wrong_saved_inputs and batch_norm"),
    ),
    Fault(
        "the shape of channels in the middle is wrong",
        CHANNELS,
        "shape=(math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])),",
        "shape=(shape[0], shape[axis], math.prod(shape) // max(shape[0] * shape[axis], 1)),",
        suite("test_cases and batch_norm", backend="numpy"),
    ),
    Fault(
        "the momentum is not checked",
        CHANNELS,
        '    checks.fraction(func_name, "momentum", momentum)\n',
        "",
        suite("test_wrong_options and batch_norm"),
    ),
)

OF_VIEWS = (
    Fault(
        "leading axes count as contiguous rows",
        VIEWS,
        "permutation=kept + axes if axes[0] != len(kept) else (),",
        "permutation=kept + axes if 0 not in axes[:1] and axes[0] != len(kept) else (),",
        suite("test_axes", "test_a_square", backend="numpy"),
    ),
    Fault(
        "y comes back with its axes in the order of rows",
        "ln_array_api/_layout.py",
        "inverse = sorted(range(len(permutation)), key=permutation.__getitem__)",
        "inverse = permutation",
        suite("test_axes", backend="numpy"),
    ),
    Fault(
        "groups of no channels are accepted",
        VIEWS,
        "if count < 1 or channels % count:",
        "if count == 0 or channels % count:",
        suite("test_wrong_options and group_norm"),
    ),
    Fault(
        "groups of channels that are not on axis 1 are not permuted",
        VIEWS,
        "permutation=(0, axis, *spatial) if axis != 1 else (),",
        "permutation=(0, axis, *spatial) if axis > 2 else (),",
        suite("test_cases and group_norm", backend="torch", library="torch"),
    ),
    Fault(
        "a slice of one axis is accepted",
        VIEWS,
        "        if not axes:\n",
        "        if not shape:\n",
        unit("test_group_norm.py"),
    ),
    Fault(
        "statistics of slices keep the rank",
        VIEWS,
        "view = over_axes(shape, axes)._replace(statistic=(shape[kept],))",
        "view = over_axes(shape, axes)",
        suite("test_cases and weight_standardization"),
    ),
)

OF_NORMS = (
    Fault(
        "norms are of at most 64 elements",
        SCALED,
        "math.sqrt(self.epsilon_divisor)",
        "math.sqrt(min(self.epsilon_divisor, 64))",
        suite("test_large and weight_norm", "test_large and unit_norm"),
    ),
    Fault(
        "epsilon of unit_norm is added to the mean square",
        ROWS,
        "epsilon / scaling.epsilon_divisor",
        "epsilon",
        unit("test_unit_norm.py"),
    ),
    Fault(
        "dg of weight_norm is not rescaled",
        SCALED,
        "return dgamma / self._sqrt_n",
        "return dgamma",
        suite("test_cases and weight_norm"),
    ),
    Fault(
        "the norm is an rstd",
        SCALED,
        "return y, mean, self._scaling.statistic(rstd)",
        "return y, mean, rstd",
        suite("test_cases and weight_norm"),
    ),
    Fault(
        "gradients by the norm take it for rstd",
        SCALED,
        "rstd, scaled = self._scaling.statistic(saved), self._scaling.gamma(x, gamma)",
        "rstd, scaled = saved, self._scaling.gamma(x, gamma)",
        suite("test_cases and weight_norm"),
    ),
)

FAULTS = (*OF_ROWS, *OF_CACHE, *OF_CHANNELS, *OF_VIEWS, *OF_NORMS)
