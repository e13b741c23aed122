"""How fast the functions are on torch's CPU tensors, next to torch's own.

As in `compare.py`: the contenders are timed in turn, and rounds that others disturbed are thrown
away. Forward is without a graph; forward and backward is by autograd, with gradients of all inputs.

    python benchmarks/torch_tensors.py --threads 2 --output docs/torch-benchmarks.md
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

SHAPES = ((8, 64), (128, 256), (512, 768), (4096, 1024), (2048, 4096), (65536, 64))
IMAGES = (32, 256, 32, 32)
HEAD = (
    "| | shape | this library, µs | torch, µs | ratio | rounds kept/thrown away |\n"
    "|---|---|---:|---:|---:|---:|"
)


def operations() -> dict[str, tuple[Callable[..., Any], Callable[..., Any], bool]]:
    """Functions of x, gamma and beta, of this library and of torch, and whether x is images."""
    from torch.nn import functional

    import ln_array_api as ln

    def length(x: Any) -> tuple[int]:
        return (x.shape[-1],)

    return {
        "layer_norm": (ln.layer_norm, lambda x, *p: functional.layer_norm(x, length(x), *p), False),
        "rms_norm": (
            lambda x, gamma, beta: ln.rms_norm(x, gamma),
            lambda x, gamma, beta: functional.rms_norm(x, length(x), gamma, 1e-6),
            False,
        ),
        "group_norm": (
            lambda *a: ln.group_norm(*a, num_groups=32),
            lambda x, *p: functional.group_norm(x, 32, *p),
            True,
        ),
        "instance_norm": (
            ln.instance_norm,
            lambda x, *p: functional.instance_norm(x, None, None, *p),
            True,
        ),
        "batch_norm": (
            lambda *a: ln.batch_norm_forward(*a).y,
            lambda x, *p: functional.batch_norm(x, None, None, *p, True),
            True,
        ),
    }


def contenders(
    functions: tuple[Callable[..., Any], ...], shape: tuple[int, ...], channel: int
) -> Iterator[tuple[str, dict[str, Callable[[], Any]]]]:
    """Forward alone, then forward and backward, by this library and by torch."""
    import torch
    from compare import THIS

    generator = torch.Generator().manual_seed(0)
    n = shape[channel]
    x, dy = (torch.randn(shape, generator=generator) for _ in range(2))
    gamma, beta = (torch.randn(n, generator=generator) for _ in range(2))
    yield (
        "forward",
        {
            name: lambda function=function: function(x, gamma, beta)  # type: ignore[misc]
            for name, function in zip((THIS, "torch"), functions, strict=True)
        },
    )
    leaves = [each.clone().requires_grad_() for each in (x, gamma, beta)]

    def both(function: Callable[..., Any]) -> None:
        for leaf in leaves:
            leaf.grad = None
        function(*leaves).backward(dy)

    yield (
        "forward and backward",
        {
            name: lambda function=function: both(function)  # type: ignore[misc]
            for name, function in zip((THIS, "torch"), functions, strict=True)
        },
    )


def cases(options: argparse.Namespace) -> Iterator[tuple[str, str, float, str]]:
    """What, of which shape, the ratio, and a line of the table."""
    from compare import THIS, measure

    for name, (own, torchs, is_image) in operations().items():
        for shape in (IMAGES,) if is_image else SHAPES:
            text = "x".join(map(str, shape))
            if options.shapes and text not in options.shapes:
                continue
            channel = 1 if is_image else -1
            for what, both in contenders((own, torchs), shape, channel):
                size = 4
                for each in shape:
                    size *= each
                times, kept, thrown_away = measure(both, size, options.rounds)
                ratio = times["torch"] / times[THIS]
                yield (
                    f"{name}, {what}",
                    text,
                    ratio,
                    f"| {name}, {what} | {text} | {1e6 * times[THIS]:,.1f} | "
                    f"{1e6 * times['torch']:,.1f} | {ratio:.2f} | {kept}/{thrown_away} |",
                )


def summary(ratios: dict[str, list[float]]) -> str:
    lines = (
        f"- {what}: geometric mean {statistics.geometric_mean(values):.2f}, least {min(values):.2f}"
        for what, values in ratios.items()
        if len(values) > 1
    )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, default=2, help="of both (default: 2)")
    parser.add_argument("--rounds", type=int, default=9, help="to keep of each case (default: 9)")
    parser.add_argument("--shapes", nargs="*", default=[], help="only these, such as 512x768")
    parser.add_argument("--output", type=Path, help="where to write")
    options = parser.parse_args()
    for variable in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"):  # read when their owners are imported
        os.environ[variable] = str(options.threads)
    print(HEAD, flush=True)
    lines, ratios = [HEAD], {}
    for what, _, ratio, line in cases(options):
        print(line, flush=True)
        lines.append(line)
        ratios.setdefault(what, []).append(ratio)
    print(f"\n{summary(ratios)}")
    if options.output:
        options.output.write_text("\n".join([*lines, "", summary(ratios), ""]), encoding="utf-8")


if __name__ == "__main__":
    main()
