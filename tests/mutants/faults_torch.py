"""Faults in what torch's tensors and chunked arrays go through before they reach a kernel."""

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
        "rstd that nobody asks for is where the mean is",
        ROWS,
        "words[self._rstd] = mean + self.after",
        "words[self._rstd] = mean",
        derivatives("expanded", "needs_no_gradient"),
    ),
    Fault(
        "sums of the second parameter lie over those of the first",
        ROWS,
        "                sums += self._apart\n",
        "                pass\n",
        tensors("bits_of_numpy", "many_threads"),
    ),
    Fault(
        "forward mode is not seen",
        TRACING,
        " or forward_ad._current_level >= 0",
        "",
        derivatives("derivatives_of_first"),
    ),
    Fault(
        "transformations are not seen",
        TRACING,
        "return _transforms_are_active() or ",
        "return ",
        derivatives("transformations"),
    ),
    Fault(
        "modes are not seen",
        TRACING,
        "_modes() > 0",
        "False",
        tensors("a_mode_sees", "fake_and_meta", "traced_program"),
    ),
    Fault(
        "subclasses are taken for memory",
        TRACING,
        "        if type(each) not in PLAIN:\n",
        "        if not isinstance(each, tuple(PLAIN)):\n",
        tensors("a_subclass_sees"),
    ),
    Fault(
        "batches of gradients are not seen",
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
        "gradients of statistics are left out",
        KERNEL,
        "of_statistics = any(each is not None for each in others) if others else False",
        "of_statistics = False",
        derivatives("statistics_can_be"),
    ),
    Fault(
        "what is written is not counted",
        KERNEL,
        "            torch.autograd.graph.increment_version(out)\n",
        "            pass\n",
        tensors("out_counts_as_written"),
    ),
    Fault(
        "a gradient that is expanded is read as it lies",
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
        "Dynamo is not told where it has been imported before",
        DYNAMO,
        "        finder.tell(sys.modules[_DYNAMO])\n",
        "        pass\n",
        unit("backends/torch/test_compile.py", "imported_first"),
    ),
    Fault(
        "Dynamo is not told once it is imported",
        DYNAMO,
        "        self._afterwards(module)\n",
        "        pass\n",
        unit("backends/torch/test_compile.py", "imported_first"),
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
        "the backend that is asked for does not reach the chunks",
        CHUNKS,
        "return nullcontext() if self.backend is None else use_backend(self.backend)",
        "return nullcontext()",
        unit("test_chunks.py", "reaches"),
    ),
    Fault(
        "parameters are cut as the first axes of x are",
        CHUNKS,
        " if axis < x.ndim and axis not in self.view.row_axes else ",
        " if axis < x.ndim else ",
        unit("test_chunks.py"),
    ),
)

FAULTS = (*OF_TORCH, *OF_CHUNKS)
