"""For torch's compiler: the public functions go into its graphs as they are.

Dynamo traces Python code, but it does not support locks, caches and context variables, which the
functions use. So the functions are registered as leaves of its graphs; the later stages run them on
tensors without memory, and see the operations in them. Registering needs a module of torch that
takes a second to import, and that programs which compile nothing never import. So it is done when
another module imports it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

_DYNAMO = "torch._dynamo"


def allow_in_graphs(functions: Iterable[Callable[..., Any]]) -> None:
    """Let Dynamo take functions into its graphs as they are, now or once it is imported."""
    finder = _Finder(tuple(functions))
    if _DYNAMO in sys.modules:
        finder.tell(sys.modules[_DYNAMO])
    else:
        sys.meta_path.insert(0, finder)


class _Finder:
    """Finds Dynamo, and registers the functions after its import.

    Not derived from what importlib.abc has for that, which takes a third of this library's import.
    """

    def __init__(self, functions: tuple[Callable[..., Any], ...]) -> None:
        self._functions = functions
        self._is_asking = False  # other finders

    def tell(self, dynamo: ModuleType) -> None:
        for function in self._functions:
            dynamo.allow_in_graph(function)
        # So that it makes a graph around a function that is itself to be compiled.
        dynamo.trace_rules.add(__package__)
        if self in sys.meta_path:
            sys.meta_path.remove(self)

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != _DYNAMO or self._is_asking:
            return None
        self._is_asking = True
        try:
            spec = find_spec(name)
        finally:
            self._is_asking = False
        if spec is not None and spec.loader is not None:
            loader: Any = _Loader(spec.loader, self.tell)
            spec.loader = loader
        return spec


class _Loader:
    """Loads a module by another loader, and calls a function after that."""

    def __init__(self, loader: Any, afterwards: Callable[[ModuleType], None]) -> None:
        self._loader, self._afterwards = loader, afterwards

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)  # type: ignore[no-any-return]

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        self._afterwards(module)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)
