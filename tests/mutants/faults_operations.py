"""Faults in the modules of the operations, each specific to one operation."""

from __future__ import annotations

from fault import Fault, suite, unit


def _without_infinities(x: str) -> str:
    """Code for an array of NumPy's in which infinities are 0, in a module that has no NumPy."""
    numbers = 'nan=float("nan"), posinf=0.0, neginf=0.0'
    return f'getattr(__import__("numpy"), "nan_to_num")({x}, {numbers})'


def _infinity(name: str, old: str, x: str = "x", test: str = "") -> Fault:
    """An operation that takes an infinity for 0, where the first argument of old is x."""
    new = old.replace(f"({x},", f"({_without_infinities(x)},")
    by = suite(f"test_a_bad_element and {test or name}")
    return Fault(f"{name} takes an infinity for 0", f"ln_array_api/{name}.py", old, new, by)


OF_INFINITIES = (
    _infinity("group_norm", "make_namedtuple(Forward, plan.forward(x, gamma, beta, None, where))"),
    _infinity(
        "instance_norm", "make_namedtuple(Forward, plan.forward(x, gamma, beta, None, where))"
    ),
    _infinity("batch_norm", "plan.run(x, gamma, beta, **masks)", test="batch_norm_forward"),
    _infinity("weight_standardization", "plan.forward(w, None, None)", "w"),
    _infinity("weight_norm", "plan.forward(v, g, None)", "v"),
    Fault(
        "instances take an infinity for 0",
        "ln_array_api/_dispatch/instances.py",
        "            self._converted[key] = reshaped(values_acc, self._plan.view.grouped_shape)\n",
        "            values_acc = self._xp.where(self._xp.isinf(values_acc), 0.0, values_acc)\n"
        "            self._converted[key] = reshaped(values_acc, self._plan.view.grouped_shape)\n",
        suite("test_a_bad_element and batch_instance"),
    ),
    Fault(
        "dynamic_tanh takes an infinity for 0",
        "ln_array_api/kernels/tanh.py",
        "y = xp.tanh(x_acc * broadcast_like(alpha, x_acc, ()))",
        "y = xp.tanh(xp.where(xp.isinf(x_acc), 0.0, x_acc) * broadcast_like(alpha, x_acc, ()))",
        unit("test_dynamic_tanh.py"),
    ),
)

OF_LAYER_AND_RMS_NORM = (
    Fault(
        "layer_norm_forward ignores out",
        "ln_array_api/layer_norm.py",
        "plan.forward(x, gamma, beta, out, where)",
        "plan.forward(x, gamma, beta, None, where)",
        suite("test_out"),
    ),
    Fault(
        "rms_norm ignores out",
        "ln_array_api/rms_norm.py",
        ".y(x, gamma, None, out, where)",
        ".y(x, gamma, None, None, where)",
        suite("test_out"),
    ),
    Fault(
        "layer_norm_backward forgets the dtype of beta",
        "ln_array_api/layer_norm.py",
        "plan.backward(*arrays, where)",
        "plan.backward(*arrays[:-1], None, where)",
        suite("test_dbeta_has_the_dtype_of_beta"),
    ),
)

OF_GROUPS = (
    Fault(
        "group_norm_backward has channels on axis 1",
        "ln_array_api/group_norm.py",
        "over = interned(ChannelGroups, num_groups, channel_axis)\n    arrays = dy, x, mean",
        "over = interned(ChannelGroups, num_groups, 1)\n    arrays = dy, x, mean",
        suite("test_cases and group_norm"),
    ),
    Fault(
        "instance_norm is group norm of one group",
        "ln_array_api/instance_norm.py",
        "over = interned(ChannelGroups, None, channel_axis)\n"
        "    options = over, epsilon, None, where, gamma_offset\n"
        '    plan = forward_plan("instance_norm", ',
        "over = interned(ChannelGroups, 1, channel_axis)\n"
        "    options = over, epsilon, None, where, gamma_offset\n"
        '    plan = forward_plan("instance_norm", ',
        suite("test_cases and instance_norm"),
    ),
    Fault(
        "weight_standardization_backward keeps the first axis",
        "ln_array_api/weight_standardization.py",
        'name, over = "weight_standardization_backward", interned(KeptAxis, axis)',
        'name, over = "weight_standardization_backward", interned(KeptAxis, 0)',
        suite("test_cases and weight_standardization"),
    ),
    Fault(
        "weight_standardization uses the mean square as variance",
        "ln_array_api/weight_standardization.py",
        "RowsOperation(center=True,",
        "RowsOperation(center=False,",
        suite("test_cases and weight_standardization"),
    ),
)

OF_BATCH_NORM = (
    Fault(
        "running_var gets the biased variance",
        "ln_array_api/batch_norm.py",
        "_running(running_var, var, momentum, count, least=2)",
        "_running(running_var, var, momentum, count, least=1)",
        suite("test_cases and batch_norm"),
    ),
    Fault(
        "momentum and 1 - momentum are exchanged",
        "ln_array_api/batch_norm.py",
        "(1 - momentum) * running_acc + momentum * (batch",
        "momentum * running_acc + (1 - momentum) * (batch",
        suite("test_cases and batch_norm"),
    ),
    Fault(
        "running statistics have the accumulation dtype",
        "ln_array_api/batch_norm.py",
        "return xp.astype(moved, native_dtype(running), copy=False)",
        "return moved",
        unit("test_batch_norm.py", "dtype"),
    ),
    Fault(
        "running statistics keep the autograd graph",
        "ln_array_api/batch_norm.py",
        "xp.astype(detach(batch), running_acc.dtype, copy=False)",
        "xp.astype(batch, running_acc.dtype, copy=False)",
        unit("test_batch_norm.py", "torch"),
    ),
)

OF_NORMS = (
    Fault(
        "power_norm has at most 64 elements in a row",
        "ln_array_api/power_norm.py",
        "math.sqrt(max(view.rows[1], 1))",
        "math.sqrt(min(max(view.rows[1], 1), 64))",
        suite("test_large and power_norm"),
    ),
    Fault(
        "power_norm does not accept an epsilon of 0",
        "ln_array_api/power_norm.py",
        "    epsilon = checks.epsilon(func_name, epsilon, x.dtype)\n",
        "    epsilon = checks.epsilon(func_name, epsilon, x.dtype) or 1e-12\n",
        unit("test_power_norm.py", "test_rows_of_zeros", "test_magnitudes"),
    ),
    Fault(
        "weight_norm has an epsilon",
        "ln_array_api/weight_norm.py",
        'forward_plan("weight_norm", _OPERATION, v, g, None, over, 0.0)',
        'forward_plan("weight_norm", _OPERATION, v, g, None, over, 1e-12)',
        unit("test_weight_norm.py"),
    ),
    Fault(
        "epsilon of power_norm is added to the mean square",
        "ln_array_api/power_norm.py",
        "epsilon / _sqrt_n(view) ** 2",
        "epsilon",
        suite("test_cases and power_norm"),
    ),
    Fault(
        "power_norm_backward lacks the slope of the power",
        "ln_array_api/power_norm.py",
        "        if alpha != 1:\n",
        "        if alpha > 1:\n",
        suite("test_cases and power_norm"),
    ),
)

OF_MIXES = (
    Fault(
        "batch_instance_norm exchanges the mixed statistics",
        "ln_array_api/batch_instance_norm.py",
        "return (rho, 1 - rho) if gamma is None",
        "return (1 - rho, rho) if gamma is None",
        suite("test_without and batch_instance"),
    ),
    Fault(
        "the gradient of an instance of one element is a rounding error",
        "ln_array_api/batch_instance_norm.py",
        "of_instance = 0 * of_instance",
        "of_instance = 1 * of_instance",
        suite("test_cases and batch_instance"),
    ),
    Fault(
        "dx of a mix lacks the distances of the means of instances",
        "ln_array_api/batch_instance_norm.py",
        "(dbeta + shift * by_batch) / count",
        "dbeta / count",
        suite("test_cases and batch_instance"),
    ),
    Fault(
        "drho is without gamma",
        "ln_array_api/batch_instance_norm.py",
        "drho = drho if scale is None else drho * scale",
        "drho = drho if scale is None else drho * 1",
        suite("test_cases and batch_instance"),
    ),
    Fault(
        "dgamma of a mix ignores the instances",
        "ln_array_api/batch_instance_norm.py",
        "dgamma = mixture * by_batch + (1 - mixture) * by_instance",
        "dgamma = by_batch",
        suite("test_cases and batch_instance"),
    ),
    Fault(
        "switchable_norm_backward mixes variances with the weights of means",
        "ln_array_api/switchable_norm.py",
        "rstd = rstd_of(xp, of_var, variances, plan.epsilon)",
        "rstd = rstd_of(xp, of_mean, variances, plan.epsilon)",
        suite("test_cases and switchable"),
    ),
    Fault(
        "means of instances and of layers share a gradient",
        "ln_array_api/switchable_norm.py",
        "means = 0 * mix.from_layer, -mix.from_layer, -mix.from_batch",
        "means = mix.from_layer, mix.from_layer, mix.from_batch",
        suite("test_cases and switchable"),
    ),
)

OF_TANH = (
    Fault(
        "the slope of tanh is computed by subtraction",
        "ln_array_api/kernels/tanh.py",
        "slope = 4 * small / (1 + small) ** 2",
        "slope = 1 - xp.tanh(inner) ** 2",
        unit("test_dynamic_tanh.py"),
    ),
    Fault(
        "dalpha is without gamma",
        "ln_array_api/kernels/tanh.py",
        "sum_over(xp, g * (slope * x_acc), every)",
        "sum_over(xp, dy * (slope * x_acc), every)",
        suite("test_cases and dynamic_tanh"),
    ),
    Fault(
        "an even window is accepted",
        "ln_array_api/local_contrast_norm.py",
        "if size < 1 or size % 2 == 0:",
        "if size < 1:",
        suite("test_wrong_options and local_contrast"),
    ),
)

OF_MOMENTS = (
    Fault(
        "the larger part does not come first",
        "ln_array_api/moments.py",
        "        if self.count < other.count:  # from the larger, a mean has the shorter way\n"
        "            return other.merge(self)\n",
        "",
        unit("test_moments.py"),
    ),
    Fault(
        "parts have the same weight",
        "ln_array_api/moments.py",
        "weight = other.count / count",
        "weight = 0.5",
        unit("test_moments.py"),
    ),
    Fault(
        "a difference of means lacks their residuals",
        "ln_array_api/moments.py",
        "mean_difference = (other.mean - self.mean) + (other.missed - self.missed)",
        "mean_difference = other.mean - self.mean",
        unit("test_moments.py"),
    ),
    Fault(
        "the residual of a merged mean is dropped",
        "ln_array_api/moments.py",
        "return Moments(count, mean, m2, missed)",
        "return Moments(count, mean, m2, 0 * missed)",
        unit("test_moments.py"),
    ),
    Fault(
        "the difference of means has the weight of the whole",
        "ln_array_api/moments.py",
        "mean_difference * mean_difference * (weight * self.count)",
        "mean_difference * mean_difference * (weight * count)",
        unit("test_moments.py"),
    ),
    Fault(
        "the unbiased variance is the biased one",
        "ln_array_api/moments.py",
        "self.m2 / (self.count - 1 if self.count > 1 else math.nan)",
        "self.m2 / (self.count if self.count > 1 else math.nan)",
        unit("test_moments.py"),
    ),
)

FAULTS = (
    *OF_INFINITIES,
    *OF_LAYER_AND_RMS_NORM,
    *OF_GROUPS,
    *OF_BATCH_NORM,
    *OF_NORMS,
    *OF_MIXES,
    *OF_TANH,
    *OF_MOMENTS,
)
