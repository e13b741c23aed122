"""Named arrays, and nets that run on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .._arrays import Array, library_of
from .definitions import validated_args
from .devices import run_device
from .gradients import backward_net
from .registry import operator_class
from .schema import OperatorDef, pluralize


class Workspace:
    """Named arrays, called blobs, and operators that read and write them.

    Blobs are kept without a copy.

    Examples
    --------
    >>> import numpy as np
    >>> from ln_array_api import caffe2
    >>> workspace = caffe2.Workspace()
    >>> workspace.feed_blob("X", np.asarray([[1.0, 2.0, 6.0]]))
    >>> net = [caffe2.create_operator("LayerNorm", ["X"], ["Y", "mean", "stddev"])]
    >>> workspace.run_net_once(net)
    >>> workspace.fetch_blob("mean")
    array([[3.]])
    >>> workspace.feed_blob("Y_grad", np.asarray([[1.0, 0.0, 0.0]]))
    >>> workspace.run_net_once(workspace.add_gradient_operators(net, {"Y": "Y_grad"}))
    >>> workspace.fetch_blob("X_grad").round(4)
    array([[ 0.1763, -0.2204,  0.0441]])
    """

    def __init__(self) -> None:
        self._blobs: dict[str, Array] = {}

    @property
    def blobs(self) -> list[str]:
        """The names of the blobs, in alphabetical order."""
        return sorted(self._blobs)

    def feed_blob(self, name: str, array: Array, /) -> None:
        """Put an array into the workspace, replacing one of the same name.

        Parameters
        ----------
        name : str
        array : array
            Of any array library.

        Raises
        ------
        TypeError
            If it is not an array.
        ValueError
            If the name is empty or not a string.
        """
        if not isinstance(name, str) or not name:
            raise ValueError(
                f"feed_blob: the name is {name!r}, but must be a string that is not empty"
            )
        self._put(f"feed_blob: {name}", name, array)

    def fetch_blob(self, name: str, /) -> Array:
        """Return the array of that name, not a copy of it.

        Parameters
        ----------
        name : str

        Returns
        -------
        array : array

        Raises
        ------
        ValueError
            If there is none.
        """
        if name not in self._blobs:
            raise ValueError(f"fetch_blob: there is no blob {name!r}; {self._known(self._blobs)}")
        return self._blobs[name]

    def run_operator_once(self, op_def: OperatorDef, /) -> None:
        """Run one operator on the blobs that it names, and keep its outputs as blobs.

        Parameters
        ----------
        op_def : OperatorDef

        Raises
        ------
        ValueError
            For a definition that its schema does not allow, a blob that is missing, an operator
            that is not registered for the device of its inputs, or a device_option that
            contradicts them; before any work. Also for inputs that the operator rejects, or a wrong
            number of outputs.
        TypeError
            For inputs that the operator rejects, or outputs that are not arrays.
        """
        self.run_net_once([op_def])

    def run_net_once(self, net: Sequence[OperatorDef], /) -> None:
        """Run operators one after the other.

        Parameters
        ----------
        net : sequence of OperatorDef

        Raises
        ------
        ValueError, TypeError
            As for `run_operator_once`. Definitions and names are checked for the whole net before
            the first operator runs.
        """
        net, known = list(net), set(self._blobs)
        for op_def in net:
            validated_args(op_def)
            for blob in op_def.inputs:
                if blob not in known:
                    raise ValueError(
                        f"{op_def.label}: there is no blob {blob!r} for it to read; "
                        f"{self._known(known)}"
                    )
            known.update(op_def.outputs)
        for op_def in net:
            self._run(op_def)

    def add_gradient_operators(
        self, net: Sequence[OperatorDef], grad_outputs: Mapping[str, str], /
    ) -> list[OperatorDef]:
        """Make the net that computes the gradients of all blobs that another net depends on.

        Parameters
        ----------
        net : sequence of OperatorDef
            The forward net, which has to run before the backward net.
        grad_outputs : mapping of str to str
            From outputs of the net to the names of their gradients, which have to be fed before the
            backward net is run. Other outputs have no gradient.

        Returns
        -------
        net : list of OperatorDef
            The backward net, in reverse order of the forward net. The gradient of a blob is called
            ``<blob>_grad``. Where a blob is used more than once, the parts of its gradient are
            ``<blob>_grad_autosplit_0`` and so on, added by Sum. Operators on which none of the
            given gradients depends are left out.

        Raises
        ------
        ValueError
            For a definition that its schema does not allow; a blob that the net writes after it
            was read or written before, because its first value would be lost; a gradient of a blob
            that is not an output of the net; a gradient with the name of another blob; or as
            `get_gradient_defs`.
        """
        return backward_net(list(net), grad_outputs)

    def _run(self, op_def: OperatorDef) -> None:
        inputs = [self._blobs[blob] for blob in op_def.inputs]
        cls = operator_class(op_def, run_device(op_def, inputs))
        outputs = cls(op_def).run_on_device(*inputs)
        if not isinstance(outputs, tuple) or len(outputs) != len(op_def.outputs):
            given = pluralize(len(outputs), "output") if isinstance(outputs, tuple) else "no tuple"
            raise ValueError(
                f"{op_def.label}: run_on_device gave {given}, but must give a tuple of "
                f"{pluralize(len(op_def.outputs), 'output')} ({', '.join(op_def.outputs)})"
            )
        for blob, array in zip(op_def.outputs, outputs, strict=True):
            self._put(f"{op_def.label}: {blob}", blob, array)

    def _put(self, what: str, name: str, array: Array) -> None:
        try:
            library_of(array)
        except TypeError as error:
            raise TypeError(f"{what}: {error}") from None
        self._blobs[name] = array

    @staticmethod
    def _known(blobs: Mapping[str, Array] | set[str]) -> str:
        return f"there are: {', '.join(sorted(blobs)) or 'none'}"
