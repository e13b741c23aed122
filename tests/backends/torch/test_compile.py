"""Programs compiled and exported by torch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

import ln_array_api as ln

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("numba", reason="Numba is not installed")

pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
    # Warnings caused by the compiler itself.
    pytest.mark.filterwarnings("ignore::UserWarning:torch"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch"),
]

#: Functions of x of shape (B, 4, 8) and of a parameter, and that parameter's length.
FUNCTIONS: dict[str, tuple[Callable[[Any, Any], Any], int]] = {
    "layer_norm": (ln.layer_norm, 8),
    "layer_norm over axes": (lambda x, g: ln.layer_norm(x, axis=(0, 2)) * g, 8),
    "layer_norm_forward": (lambda x, g: sum(ln.layer_norm_forward(x, g, g)), 8),
    "layer_norm_backward": (
        lambda x, g: ln.layer_norm_backward(x * x, x, *ln.layer_norm_forward(x, g)[1:], g).dx,
        8,
    ),
    "rms_norm": (ln.rms_norm, 8),
    "rms_norm_forward": (lambda x, g: sum(ln.rms_norm_forward(x, g)), 8),
    "group_norm": (lambda x, g: ln.group_norm(x, g, g, num_groups=2), 4),
    "instance_norm": (lambda x, g: ln.instance_norm(x, g, g), 4),
    "batch_norm": (lambda x, g: ln.batch_norm(x, g, g * g + 1, g, g), 4),
    "batch_norm_forward": (lambda x, g: ln.batch_norm_forward(x, g, g).y, 4),
    "statistics of batch_norm_forward": (
        lambda x, g: sum(each.sum() for each in ln.batch_norm_forward(x, g)[1:3]) * g,
        4,
    ),
    "batch_instance_norm": (lambda x, g: ln.batch_instance_norm(x, torch.sigmoid(g), g, g), 4),
    "switchable_norm": (lambda x, g: ln.switchable_norm(x, g[:3], g[:3], g, g), 4),
    "weight_norm": (lambda x, g: ln.weight_norm(x, g, axis=1), 4),
    "weight_standardization": (lambda x, g: ln.weight_standardization(x) * g, 8),
    "power_norm": (lambda x, g: ln.power_norm(x) * g, 8),
    "local_contrast_norm": (lambda x, g: ln.local_contrast_norm(x, size=3) * g, 8),
    "dynamic_tanh": (lambda x, g: ln.dynamic_tanh(x, g.mean(), g, g), 8),
}
#: Functions that compute with lengths, which the compiler therefore treats as constants.
OF_KNOWN_LENGTHS = {
    "weight_norm": "the root of a length",
    "local_contrast_norm": "how many elements a window has at an edge",
}


def check(compiled: Callable[..., Any], function: Callable[..., Any], batch: int, n: int) -> None:
    """Check that a program gives the function's y and gradients."""
    generator = torch.Generator().manual_seed(batch)
    x, g = (torch.randn(shape, generator=generator) for shape in ((batch, 4, 8), (n,)))
    found = []
    for each in (compiled, function):
        inputs = [x.clone().requires_grad_(), g.clone().requires_grad_()]
        y = each(*inputs)
        gradients = torch.autograd.grad(y.pow(2).sum(), inputs, allow_unused=True)
        found.append((y, *(each for each in gradients if each is not None)))
    torch.testing.assert_close(*found, rtol=2e-5, atol=2e-5)


def counted(function: Callable[..., Any], **options: Any) -> tuple[Any, Any]:
    """Compile a function without Inductor; return it and a counter of compilations."""
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    return torch.compile(function, fullgraph=True, backend=counter, **options), counter


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_graph_without_breaks(name: str) -> None:
    function, n = FUNCTIONS[name]
    compiled, _ = counted(function, dynamic=False)
    check(compiled, function, 6, n)


@pytest.mark.parametrize("name", sorted(set(FUNCTIONS) - set(OF_KNOWN_LENGTHS)))
def test_a_graph_for_any_batch(name: str) -> None:
    function, n = FUNCTIONS[name]
    compiled, counter = counted(function, dynamic=True)
    for batch in (6, 9, 11):
        check(compiled, function, batch, n)
    assert counter.frame_count == 1


def test_a_second_size_is_compiled_for_any() -> None:
    compiled, counter = counted(lambda x, g: ln.layer_norm(x, g))
    for batch in (6, 9, 11):
        check(compiled, ln.layer_norm, batch, 8)
    assert counter.frame_count == 2


TRANSFORMED: dict[str, Callable[[Any, Any], Any]] = {
    "vmap": lambda x, g: torch.func.vmap(lambda x: ln.layer_norm(x, g))(x),
    "grad": lambda x, g: torch.func.grad(lambda x: ln.layer_norm(x, g).pow(3).sum())(x),
    "jvp": lambda x, g: torch.func.jvp(lambda x: ln.layer_norm(x, g), (x,), (x.cos(),))[1],
    "vmap of batch norm": lambda x, g: torch.func.vmap(lambda x: ln.batch_norm_forward(x).y)(x),
}


@pytest.mark.parametrize("name", TRANSFORMED)
def test_transformations_within_a_graph(name: str) -> None:
    x, g = torch.randn(5, 3, 8), torch.randn(8)
    function = TRANSFORMED[name]
    compiled, _ = counted(function)
    torch.testing.assert_close(compiled(x, g), function(x, g))


@pytest.mark.parametrize("is_x", [False, True])
def test_a_program_writes_to_out(is_x: bool) -> None:
    compiled, _ = counted(lambda x, g, out: ln.layer_norm(x, g, out=out))
    x, g = torch.randn(6, 4, 8), torch.randn(8)
    expected, out = ln.layer_norm(x, g), x if is_x else torch.zeros_like(x)
    torch.testing.assert_close(compiled(x, g, out), expected)
    torch.testing.assert_close(out, expected)


def test_an_inductor_program_has_the_kernels_bits() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(lambda x, g: ln.layer_norm(x, g), fullgraph=True)
    x, g = torch.randn(64, 100), torch.randn(100)
    assert torch.equal(compiled(x, g), ln.layer_norm(x, g))
    check(compiled, ln.layer_norm, 5, 8)


def test_operators_have_the_shapes_and_the_derivatives_that_they_say() -> None:
    from ln_array_api_backends.torch import operators

    assert operators.Node
    x, g = torch.randn(6, 8), torch.randn(8)
    namespace = torch.ops.ln_array_api
    for operator, arguments in (
        (namespace.rows_forward, (x, g, None, 1e-5, True, 1, 1, 1)),
        (namespace.rows_forward, (x, None, None, 1e-5, False, 1, 1, 1)),
        (namespace.rows_backward, (x, x, *_column(2), g, True, 1, 1, 1, True, True, False)),
        (namespace.channels_forward, (x.reshape(2, 3, 8), None, None, 1e-5)),
    ):
        torch.library.opcheck(operator.default, arguments, test_utils="test_faketensor")


def _column(count: int) -> list[Any]:
    return [torch.ones(6, 1) for _ in range(count)]


@pytest.mark.parametrize("strict", [False, True])
def test_an_export_for_any_batch(strict: bool) -> None:
    class Module(torch.nn.Module):
        def forward(self, x: Any, g: Any) -> Any:
            return ln.layer_norm(x, g)

    torch._dynamo.reset()
    shapes = {"x": {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}, "g": None}
    x, g = torch.randn(6, 4, 8), torch.randn(8)
    program = torch.export.export(Module(), (x, g), dynamic_shapes=shapes, strict=strict)
    names = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not any(name.startswith("ln_array_api") for name in names)
    other = torch.randn(9, 3, 8)
    torch.testing.assert_close(program.module()(other, g), ln.layer_norm(other, g))


#: Those whose programs are for the lengths that they were exported with.
OF_FIXED_LENGTHS = {"weight_norm", "layer_norm over axes"}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_an_export_of_each_function(name: str) -> None:
    function, n = FUNCTIONS[name]

    class Module(torch.nn.Module):
        def forward(self, x: Any, g: Any) -> Any:
            return function(x, g)

    varies = name not in OF_FIXED_LENGTHS
    shapes = ({0: torch.export.Dim("batch")}, None) if varies else None
    x, g = torch.randn(6, 4, 8), torch.randn(n)
    program = torch.export.export(Module(), (x, g), dynamic_shapes=shapes, strict=False)
    other = torch.randn(9 if varies else 6, 4, 8)
    close = {"rtol": 2e-5, "atol": 2e-5}
    torch.testing.assert_close(program.module()(other, g), function(other, g), **close)


FIRST = """
{imports}
import sys
assert ("torch._dynamo" in sys.modules) == {is_there}
compiled = torch.compile(lambda x: ln.layer_norm(x), fullgraph=True, backend="aot_eager")
print(compiled(torch.tensor([[1.0, 3.0]])).round().tolist())
"""


@pytest.mark.parametrize(
    ("imports", "is_there"),
    [
        ("import ln_array_api as ln\nimport torch", False),
        ("import torch\nimport ln_array_api as ln", False),
        (
            "import torch\nimport ln_array_api as ln\nimport importlib.util\n"
            "assert importlib.util.find_spec('torch._dynamo')",
            False,
        ),
        ("import torch._dynamo\nimport torch\nimport ln_array_api as ln", True),
    ],
)
def test_torch_compiles_calls_in_any_order_of_imports(imports: str, is_there: bool) -> None:
    code = FIRST.format(imports=imports, is_there=is_there)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.stdout.strip() == "[[-1.0, 1.0]]", done.stderr
