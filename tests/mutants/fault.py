"""What a planted fault is: a change to one place of a file, and the tests that are to catch it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
NUMPY = "backends/ln_array_api_backends/numpy"


class Fault(NamedTuple):
    """A wrong version of a file."""

    name: str
    file: str
    """From the root of the repository."""
    old: str
    """What occurs once in the file."""
    new: str
    """What the fault puts in its place."""
    by: tuple[str, ...]
    """The arguments of pytest for the tests of which one has to fail."""

    def planted(self, text: str) -> str:
        """Plant the fault in the text of the file.

        Raises
        ------
        ValueError
            If the code has changed, so that the fault has to be written anew.
        """
        count = text.count(self.old)
        if count != 1:
            raise ValueError(f"{self.name}: {self.file} has {count} times, not once: {self.old!r}")
        return text.replace(self.old, self.new)


def suite(*names: str, backend: str = "generic", library: str = "numpy") -> tuple[str, ...]:
    """The tests of the conformance suite that have one of these in their names, or all of them."""
    chosen = ("-k", " or ".join(names)) if names else ()
    options = ("--library", library, "--backend", backend)
    return ("--pyargs", "ln_array_api_conformance", *options, *chosen)


def unit(path: str, *names: str) -> tuple[str, ...]:
    """The tests of a file below tests/ that have one of these in their names, or all of them."""
    return (f"tests/{path}", *(("-k", " or ".join(names)) if names else ()))
