"""Faults in the torch backend, and in the handling of chunked arrays."""

from __future__ import annotations

from functools import partial

from fault import Fault, unit

TORCH = "backends/ln_array_api_backends/torch"
KERNEL, ROWS, TRACING, OPERATORS = (
    f"{TORCH}/{name}.py" for name in ("kernel", "rows", "tracing", "operators")
)
CHUNKS, DYNAMO = "ln_array_api/_dispatch/chunks.py", "ln_array_api/_torch.py"


tensors = partial(unit, "backends/torch/test_torch.py")
derivatives = partial(unit, "backends/torch/test_derivatives.py")

OF_TORCH = (
    Fault(
        "rstd that is not returned overwrites the mean",
        ROWS,
        "words[self._rstd] = mean + self.after",
        "words[self._rstd] = mean",
        derivatives("expanded", "needs_no_gradient"),
    ),
    Fault(
        "sums of the second parameter overwrite those of the first",
        ROWS,
        "                sums += self._apart\n",
        "                pass\n",
        tensors("bits_of_numpy", "many_threads"),
    ),
    Fault(
        "forward mode is not detected",
        TRACING,
        " or forward_ad._current_level >= 0",
        "",
        derivatives("derivatives_of_first"),
    ),
    Fault(
        "transformations are not detected",
        TRACING,
        "return _transforms_are_active() or ",
        "return ",
        derivatives("transformations"),
    ),
    Fault(
        "dispatch modes are not detected",
        TRACING,
        "_modes() > 0",
        "False",
        tensors("a_mode_sees", "fake_and_meta", "traced_program"),
    ),
    Fault(
        "subclasses count as plain tensors",
        TRACING,
        "        if type(each) not in PLAIN:\n",
        "        if not isinstance(each, tuple(PLAIN)):\n",
        tensors("a_subclass_sees"),
    ),
    Fault(
        "batches of gradients are not detected",
        KERNEL,
        "of_statistics or is_batched() or",
        "of_statistics or",
        derivatives("derivatives_of_first", "batched_gradients"),
    ),
    Fault(
        "gradients of gradients are constants",
        KERNEL,
        "if create_graph or of_statistics",
        "if of_statistics",
        derivatives("derivatives_of_first", "third_order"),
    ),
    Fault(
        "gradients of statistics are ignored",
        KERNEL,
        "of_statistics = any(each is not None for each in others) if others else False",
        "of_statistics = False",
        derivatives("statistics_can_be"),
    ),
    Fault(
        "writing to out does not change its version",
        KERNEL,
        "            torch.autograd.graph.increment_version(out)\n",
        "            pass\n",
        tensors("out_counts_as_written"),
    ),
    Fault(
        "an expanded gradient is read as if it were contiguous",
        KERNEL,
        "            dy = dy.contiguous().resolve_neg()\n",
        "            pass\n",
        derivatives("expanded"),
    ),
    Fault(
        "hooks of the inputs are called for gradients of gradients",
        KERNEL,
        "views = [None if each is None else each.view_as(each) for each in inputs]",
        "views = list(inputs)",
        derivatives("hook_is_called_once"),
    ),
    Fault(
        "operators of rows forget the gradient of rstd",
        OPERATORS,
        "        share = share - rstd**3 * d * drstd.reshape(shape)\n",
        "        pass\n",
        unit("backends/torch/test_compile.py", "layer_norm_forward", "rms_norm_forward"),
    ),
    Fault(
        "Dynamo is not configured if it was imported before",
        DYNAMO,
        "        finder.tell(sys.modules[_DYNAMO])\n",
        "        pass\n",
        unit("backends/torch/test_compile.py", "order_of_imports"),
    ),
    Fault(
        "Dynamo is not configured when it is imported",
        DYNAMO,
        "        self._afterwards(module)\n",
        "        pass\n",
        unit("backends/torch/test_compile.py", "order_of_imports"),
    ),
)

OF_CHUNKS = (
    Fault(
        "chunks that hold parts of rows count as whole",
        CHUNKS,
        "all(x.numblocks[axis] == 1 for axis in view.row_axes)",
        "all(x.numblocks[axis] >= 1 for axis in view.row_axes)",
        unit("test_layer_norm.py", "dask"),
    ),
    Fault(
        "the requested backend does not reach the chunks",
        CHUNKS,
        "return nullcontext() if self.backend is None else use_backend(self.backend)",
        "return nullcontext()",
        unit("test_chunks.py", "reaches"),
    ),
    Fault(
        "parameters are chunked as the first axes of x",
        CHUNKS,
        " if axis < x.ndim and axis not in self.view.row_axes else ",
        " if axis < x.ndim else ",
        unit("test_chunks.py"),
    ),
)

FAULTS = (*OF_TORCH, *OF_CHUNKS)
