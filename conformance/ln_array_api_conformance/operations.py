"""All operations that the suite tests, by name."""

from __future__ import annotations

from . import channel_operations, other_operations, row_operations
from .operation_spec import OperationSpec

OPERATIONS: dict[str, OperationSpec] = {
    each.name: each
    for module in (row_operations, channel_operations, other_operations)
    for each in vars(module).values()
    if isinstance(each, OperationSpec)
}
