"""Faults in views and plans, from a call to its kernel."""

from __future__ import annotations

from fault import Fault, suite, unit

ROWS, PLANS, CHANNELS, VIEWS = (
    f"ln_array_api/{name}.py" for name in ("_rows", "_plans", "_channels", "_views")
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
        "if out is not None and not view.permutation and library.is_contiguous(out):",
        "if out is not None and library.is_contiguous(out):",
        unit("test_rows_out.py"),
    ),
    Fault(
        "out of another layout is not written",
        PLANS,
        "            out[...] = view.from_rows(y)\n",
        "            pass\n",
        suite("test_out", backend="numpy"),
    ),
    Fault(
        "a forward plan is for every backend",
        ROWS,
        "            epsilon,\n            center,\n            requested_backend(),\n",
        "            epsilon,\n            center,\n",
        unit("test_backend_choice.py"),
    ),
    Fault(
        "a backward plan is for every backend",
        ROWS,
        "            need,\n            center,\n            requested_backend(),\n",
        "            need,\n            center,\n",
        unit("test_rows.py", "asked_for"),
    ),
    Fault(
        "a forward plan is for layer norm and RMS norm alike",
        ROWS,
        "            epsilon,\n            center,\n",
        "            epsilon,\n",
        unit("test_rows.py", "with_a_mean_or_without"),
    ),
    Fault(
        "a forward plan is for every epsilon",
        ROWS,
        "            axis,\n            epsilon,\n",
        "            axis,\n",
        suite("test_forward_values"),
    ),
    Fault(
        "a backward plan is for any need",
        ROWS,
        "            axis,\n            need,\n            center,\n",
        "            axis,\n            center,\n",
        suite("test_interface and test_need"),
    ),
    Fault(
        "a backward plan is for gamma of any dtype",
        ROWS,
        "            find[type(gamma)](gamma),\n            find[type(beta)](beta),\n"
        "            axis,\n            need,\n",
        "            find[type(beta)](beta),\n            axis,\n            need,\n",
        suite("test_wider_parameters", "test_parameters_are_optional"),
    ),
    Fault(
        "a rstd wider than the accumulation dtype reaches a kernel",
        PLANS,
        "return xp.astype(values, getattr(xp, ACCUMULATION[dtype]), copy=False)",
        "return values",
        unit("test_rows.py"),
    ),
    Fault(
        "plain rows with a wide rstd reach a kernel unconverted",
        PLANS,
        "            and {dtype_name_or_none(each) for each in acc_arrays}\n"
        "            <= {None, ACCUMULATION[spec.dtype]}\n",
        "",
        unit("test_rows.py"),
    ),
    Fault(
        "rows of another layout reach a kernel uncopied",
        PLANS,
        "            and all(each is None or library_of(each).is_contiguous(each) for"
        " each in arrays)\n",
        "",
        unit("test_rows.py", "made_contiguous"),
    ),
    Fault(
        "dbeta in a wider dtype than gamma loses digits",
        PLANS,
        "return beta is not None and dtype_name_or_none(beta) != given != ACCUMULATION[dtype]",
        "return False",
        unit("test_rows.py", "wider_beta"),
    ),
    Fault(
        "gradients of parameters have the dtype of x",
        PLANS,
        "if each is not None][-1])",
        "if each is not None][0])",
        suite("test_wider_parameters"),
    ),
    Fault(
        "out is not checked against gamma and beta",
        ROWS,
        '{"gamma": gamma, "beta": beta}',
        "{}",
        suite("test_errors"),
    ),
    Fault(
        "dgamma is computed where there is no gamma",
        ROWS,
        '"dgamma" in need and gamma is not None, ',
        '"dgamma" in need, ',
        suite("test_gradients_of_absent_parameters"),
    ),
    Fault(
        "dgamma is not in the shape of the normalised axes",
        PLANS,
        "return xp.reshape(xp.astype(values, dtype, copy=False), shape)",
        "return xp.astype(values, dtype, copy=False)",
        suite("test_axes"),
    ),
    Fault(
        "a wrong beta is accepted",
        ROWS,
        "        if beta is not None:\n"
        '            _parameter("beta", func_name, beta, x, view)\n'
        "        spec = ",
        "        spec = ",
        unit("test_check.py"),
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

OF_CHANNELS = (
    Fault(
        "a plan over channels is for every backend",
        CHANNELS,
        CHANNELS_KEY,
        "key = (primitive, options, *[",
        unit("test_channels.py"),
    ),
    Fault(
        "a plan over channels is for every epsilon and axis",
        CHANNELS,
        CHANNELS_KEY,
        "key = (primitive, requested_backend(), *[",
        suite("test_family_accuracy and batch_norm"),
    ),
    Fault(
        "channels of another layout reach a kernel uncopied",
        CHANNELS,
        "            and all(each is None or library_of(each).is_contiguous(each) for"
        " each in (x, *others))\n",
        "",
        unit("test_channels.py"),
    ),
    Fault(
        "wide statistics of channels reach a kernel unconverted",
        CHANNELS,
        "            and {dtype_name_or_none(each) for each in acc_arrays}\n"
        "            <= {None, ACCUMULATION[spec.dtype]}\n",
        "",
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
        "            _check.operand(func_name, name, values, x, shape, shape_text, dtype)\n",
        "            pass\n",
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
        '        _check.fraction(func_name, "momentum", momentum)\n',
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
        VIEWS,
        "inverse = sorted(range(len(self.permutation)), key=self.permutation.__getitem__)",
        "inverse = self.permutation",
        suite("test_axes", backend="numpy"),
    ),
    Fault(
        "groups of no channels are accepted",
        VIEWS,
        "(count < 1 or channels % count)",
        "(count == 0 or channels % count)",
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
        "view = view._replace(statistic=(shape[kept],), x_name=self.x_name)",
        "view = view._replace(x_name=self.x_name)",
        suite("test_cases and weight_standardization"),
    ),
)

FAULTS = (*OF_ROWS, *OF_CHANNELS, *OF_VIEWS)
