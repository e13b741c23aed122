"""Differentiate operators and nets: find the operators that compute the gradients of blobs."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import count

from .definitions import validated_args
from .registry import gradient_maker, register_gradient
from .schema import OperatorDef, pluralize

_SPLIT_SUFFIX = "_autosplit_"  # Caffe2's suffix for gradients that are parts of a sum


def gradient_name(blob: str) -> str:
    """Return the name of the gradient of a blob."""
    return f"{blob}_grad"


@register_gradient("LayerNorm")
def _layer_norm_gradient(
    op_def: OperatorDef, grad_outputs: list[str | None]
) -> tuple[list[OperatorDef], list[str | None]]:
    grad_y, *grad_statistics = grad_outputs
    for name, blob, grad in zip(
        ("mean", "stddev"), op_def.outputs[1:], grad_statistics, strict=True
    ):
        if grad is not None:
            raise ValueError(
                f"{op_def.label}: {grad!r} is given as the gradient of its output {name} "
                f"({blob}), but LayerNormGradient differentiates only its first output, so this "
                "must be None"
            )
    arguments = validated_args(op_def)
    assert grad_y is not None  # one of the gradients is given
    backward = OperatorDef(
        "LayerNormGradient",
        (grad_y, *op_def.outputs, *op_def.inputs[:2]),  # X and gamma, but not beta
        tuple(map(gradient_name, op_def.inputs)),
        {key: arguments[key] for key in ("axis", "elementwise_affine")},
        op_def.device_option,
    )
    return [backward], list(backward.outputs)


@register_gradient("Sum")
def _sum_gradient(
    op_def: OperatorDef, grad_outputs: list[str | None]
) -> tuple[list[OperatorDef], list[str | None]]:
    # Each input's gradient is that of the sum, so nothing has to be computed.
    return [], grad_outputs * len(op_def.inputs)


def get_gradient_defs(
    op_def: OperatorDef, grad_outputs: Sequence[str | None]
) -> tuple[list[OperatorDef], list[str | None]]:
    """Define the operators that compute the gradients of an operator's inputs.

    Parameters
    ----------
    op_def : OperatorDef
    grad_outputs : sequence of str or None
        For each output the name of its gradient, None where it has none.

    Returns
    -------
    op_defs : list of OperatorDef
        To run in this order. For LayerNorm, one LayerNormGradient.
    grad_inputs : list of str or None
        For each input the name of its gradient, ``<blob>_grad``, or None where it has none. In Sum
        the gradient of an input is that of the output, and has its name. Where a blob is several
        inputs at once, the parts of its gradient are called ``<blob>_grad_autosplit_<number>``.

    Raises
    ------
    ValueError
        For a wrong number of gradients, an operator without gradient, a definition that its
        schema does not allow, or a gradient of LayerNorm's mean or stddev: Caffe2's
        LayerNormGradient uses only the gradient of the first output.

    Notes
    -----
    Where no output has a gradient, no input has one, and `op_defs` is empty.

    Examples
    --------
    >>> from ln_array_api import caffe2
    >>> op_def = caffe2.create_operator("LayerNorm", ["X"], ["Y", "mean", "stddev"])
    >>> (backward,), grad_inputs = caffe2.get_gradient_defs(op_def, ["Y_grad", None, None])
    >>> backward.type, backward.inputs
    ('LayerNormGradient', ('Y_grad', 'Y', 'mean', 'stddev', 'X'))
    >>> grad_inputs
    ['X_grad']
    """
    validated_args(op_def)
    if len(grad_outputs) != len(op_def.outputs):
        raise ValueError(
            f"{op_def.label}: {pluralize(len(grad_outputs), 'gradient')} given, but it has "
            f"{pluralize(len(op_def.outputs), 'output')} ({', '.join(op_def.outputs)}); give None "
            "for an output without gradient"
        )
    if all(each is None for each in grad_outputs):
        return [], [None] * len(op_def.inputs)
    make = gradient_maker(op_def)
    # The parts of a gradient must not be written to the same blob, so the function that makes the
    # gradient gets a different name for each use of a blob.
    aliases, names = _alias_inputs(op_def.inputs)
    op_defs, grad_inputs = make(replace(op_def, inputs=aliases), list(grad_outputs))
    if len(grad_inputs) != len(op_def.inputs):
        raise ValueError(
            f"{op_def.label}: its gradient names {pluralize(len(grad_inputs), 'gradient')}, but it "
            f"has {pluralize(len(op_def.inputs), 'input')}"
        )
    return (
        [_rename(each, names, names) for each in op_defs],
        [None if each is None else names.get(each, each) for each in grad_inputs],
    )


def _alias_inputs(inputs: Sequence[str]) -> tuple[tuple[str, ...], dict[str, str]]:
    """Name each use of a blob that is several inputs; return all inputs, and the real names."""
    aliases, names = list(inputs), {}
    for index, blob in enumerate(inputs):
        if inputs.count(blob) > 1:
            part = inputs[:index].count(blob)
            aliases[index] = alias = f"{blob}/use {part}"
            names[alias] = blob
            names[gradient_name(alias)] = f"{gradient_name(blob)}{_SPLIT_SUFFIX}{part}"
    return tuple(aliases), names


def _rename(
    op_def: OperatorDef, inputs: Mapping[str, str], outputs: Mapping[str, str]
) -> OperatorDef:
    return replace(
        op_def,
        inputs=tuple(inputs.get(each, each) for each in op_def.inputs),
        outputs=tuple(outputs.get(each, each) for each in op_def.outputs),
    )


def backward_net(net: Sequence[OperatorDef], grad_outputs: Mapping[str, str]) -> list[OperatorDef]:
    """Return the net that computes the gradients; see `Workspace.add_gradient_operators`."""
    for op_def in net:
        validated_args(op_def)
    _check_written_once(net)
    _check_seeds(net, grad_outputs)
    contributing = _contributing(net, grad_outputs)
    backward = _BackwardBuilder(net, contributing, grad_outputs)
    for op_def in reversed(contributing):
        backward.differentiate(op_def)
    return backward.finish()


def _check_written_once(net: Sequence[OperatorDef]) -> None:
    """Check that no operator overwrites a blob that was read or written before."""
    known: set[str] = set()
    for op_def in net:
        known.update(op_def.inputs)
        for blob in op_def.outputs:
            if blob in known:
                raise ValueError(
                    f"add_gradient_operators: {op_def.label} overwrites {blob}, so the values "
                    "that its gradient needs would be lost; give the output a name of its own"
                )
            known.add(blob)


def _check_seeds(net: Sequence[OperatorDef], grad_outputs: Mapping[str, str]) -> None:
    outputs = [blob for op_def in net for blob in op_def.outputs]
    for blob, name in grad_outputs.items():
        if blob not in outputs:
            raise ValueError(
                f"add_gradient_operators: a gradient is given for {blob!r}, which no operator of "
                f"the net writes; its outputs are: {', '.join(outputs)}"
            )
        if not isinstance(name, str) or not name:
            raise ValueError(
                f"add_gradient_operators: the gradient of {blob} is {name!r}, but must be the "
                "name of a blob"
            )


def _contributing(net: Sequence[OperatorDef], grad_outputs: Mapping[str, str]) -> list[OperatorDef]:
    """Return the operators whose outputs affect the given gradients."""
    reached, contributing = set(grad_outputs), []
    for op_def in reversed(net):
        if reached.intersection(op_def.outputs):
            reached.update(op_def.inputs)
            contributing.append(op_def)
    return contributing[::-1]


class _BackwardBuilder:
    """Builds a backward net, operator by operator."""

    def __init__(
        self,
        net: Sequence[OperatorDef],
        contributing: Sequence[OperatorDef],
        seeds: Mapping[str, str],
    ) -> None:
        self.op_defs: list[OperatorDef] = []
        self.seeds = seeds
        # For each blob, the names of the gradients that add up to its own.
        self.parts = defaultdict(list, {blob: [name] for blob, name in seeds.items()})
        # The largest number of parts: with more than one, none may take the name of the sum.
        self.aliases = Counter(blob for op_def in contributing for blob in op_def.inputs)
        self.taken = {blob for op_def in net for blob in (*op_def.inputs, *op_def.outputs)}
        self.taken.update(seeds.values())
        for blob in self.aliases:
            name = gradient_name(blob)
            if name in self.taken:
                raise ValueError(
                    f"add_gradient_operators: the gradient of {blob} would overwrite {name}, "
                    "which is a blob of the net or the name of a given gradient; rename that"
                )
        self.taken.update(map(gradient_name, self.aliases))
        self.aliases.update(seeds.keys())

    def differentiate(self, op_def: OperatorDef) -> None:
        """Add operators that compute the gradients of an operator's inputs."""
        grad_outputs = [self.gradient(blob) for blob in op_def.outputs]
        op_defs, grad_inputs = get_gradient_defs(op_def, grad_outputs)
        whole = {
            grad: gradient_name(blob)
            for blob, grad in zip(op_def.inputs, grad_inputs, strict=True)
            if grad is not None and self.aliases[blob] == 1
        }
        # The outputs of these operators get names that are unique in the net.
        written: dict[str, str] = {}
        for each in op_defs:
            outputs = {name: whole.get(name) or self._unique_name(name) for name in each.outputs}
            self.op_defs.append(_rename(each, written, outputs))
            written.update(outputs)
        for blob, grad in zip(op_def.inputs, grad_inputs, strict=True):
            if grad is not None:
                self.parts[blob].append(written.get(grad, grad))

    def _unique_name(self, name: str) -> str:
        """Return the name, or one for a part of it if the name is taken."""
        whole, number = name.partition(_SPLIT_SUFFIX)[0], count()
        while name in self.taken:
            name = f"{whole}{_SPLIT_SUFFIX}{next(number)}"
        self.taken.add(name)
        return name

    def gradient(self, blob: str) -> str | None:
        """Return the name of a blob's gradient, after adding up its parts; None if it has none."""
        parts, name = self.parts.pop(blob, []), gradient_name(blob)
        if not parts:
            return None
        if len(parts) == 1 and parts[0] in (name, self.seeds.get(blob)):
            return parts[0]
        self.op_defs.append(OperatorDef("Sum", tuple(parts), (name,)))
        return name

    def finish(self) -> list[OperatorDef]:
        """Add up the gradients of the forward net's inputs, and return the net."""
        for blob in list(self.parts):
            self.gradient(blob)
        return self.op_defs
