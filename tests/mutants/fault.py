"""A planted fault: a change at one place of a file, and the tests that have to catch it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
NUMPY = "backends/ln_array_api_backends/numpy"


class Fault(NamedTuple):
    """A wrong version of a file."""

    name: str
    file: str
    """The path from the root of the repository."""
    old: str
    """The code that is replaced; it occurs once in the file."""
    new: str
    """The code that replaces it."""
    by: tuple[str, ...]
    """Arguments of pytest; one of the selected tests has to fail."""

    def planted(self, text: str) -> str:
        """Plant the fault in the text of the file.

        Raises
        ------
        ValueError
            If the code has changed, so that the fault has to be rewritten.
        """
        count = text.count(self.old)
        if count != 1:
            raise ValueError(f"{self.name}: {self.file} has {count} times, not once: {self.old!r}")
        return text.replace(self.old, self.new)


def suite(*names: str, backend: str = "generic", library: str = "numpy") -> tuple[str, ...]:
    """Select tests of the conformance suite by parts of their names, or all of them."""
    chosen = ("-k", " or ".join(names)) if names else ()
    options = ("--library", library, "--backend", backend)
    return ("--pyargs", "ln_array_api_conformance", *options, *chosen)


def unit(path: str, *names: str) -> tuple[str, ...]:
    """Select tests of a file in tests/ by parts of their names, or all of them."""
    return (f"tests/{path}", *(("-k", " or ".join(names)) if names else ()))
