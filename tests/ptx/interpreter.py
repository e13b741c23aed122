"""Runs a kernel: all threads of some blocks at a time, each instruction for all threads at it.

Divergent threads run the lowest instruction first, so that they converge as far as the compiler's
order of code lets them. A barrier or a shuffle waits for all its threads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from counters import WARP, Counters, Traffic
from instructions import DTYPES, OPERATIONS, Operation
from memory import Memory
from parse import SIZES, Address, Immediate, Instruction, Kernel, Operand, PTXError, Vector

Array = np.ndarray[Any, Any]

#: Threads that run at a time: so few that their registers stay in the CPU's caches.
THREADS_AT_ONCE = 4096
ALL_LANES = 0xFFFFFFFF
#: Instructions at which threads wait for the others of their warp or block.
MEETINGS = ("bar", "shfl", "vote")


def launch(
    kernel: Kernel,
    grid: Sequence[int],
    block: Sequence[int],
    arguments: Sequence[bytes],
    memory: Memory,
    blocks: Sequence[int] | None = None,
) -> Counters:
    """Run all blocks of a grid, or those with the given numbers, some of them at a time."""
    threads = int(np.prod(block))
    if threads % WARP:
        raise PTXError(f"{kernel.name}: blocks of {threads} threads, which is not whole warps")
    if len(arguments) != len(kernel.parameters):
        raise PTXError(
            f"{kernel.name}: {len(arguments)} arguments for {len(kernel.parameters)} parameters"
        )
    parameters = {}
    for place, ((name, kind), given) in enumerate(
        zip(kernel.parameters.items(), arguments, strict=True)
    ):
        if len(given) != SIZES[kind]:
            raise PTXError(f"{kernel.name}: argument {place} has {len(given)} bytes for {kind}")
        parameters[name] = given
    numbers = np.arange(int(np.prod(grid))) if blocks is None else np.asarray(blocks)
    counters = Counters(blocks=len(numbers))
    step = max(1, THREADS_AT_ONCE // threads)
    with np.errstate(all="ignore"):
        for begin in range(0, len(numbers), step):
            part = numbers[begin : begin + step]
            _Blocks(kernel, grid, block, parameters, memory, counters, part).run()
    return counters


def _three(dimensions: Sequence[int]) -> tuple[int, int, int]:
    x, y, z = (*dimensions, 1, 1)[:3]
    return int(x), int(y), int(z)


class _Blocks:
    """Blocks that run at a time. Arrays have a value for each thread, block after block."""

    def __init__(
        self,
        kernel: Kernel,
        grid: Sequence[int],
        block: Sequence[int],
        parameters: dict[str, bytes],
        memory: Memory,
        counters: Counters,
        numbers: Array,
    ) -> None:
        self.kernel, self.parameters = kernel, parameters
        self.memory, self.counters = memory, counters
        self.threads = int(np.prod(block))
        lanes = len(numbers) * self.threads
        self.block = np.repeat(np.arange(len(numbers)), self.threads)
        self.warp = np.arange(lanes) // WARP
        self.registers: dict[str, Array] = {}
        self.shared = np.full((len(numbers), kernel.shared_bytes + 8), 0xFF, "u1")
        self.special = self._special(grid, block, numbers, lanes)
        self.at = np.zeros(lanes, np.int64)
        self.waits = np.zeros(lanes, bool)

    def _special(
        self, grid: Sequence[int], block: Sequence[int], numbers: Array, lanes: int
    ) -> dict[str, Array]:
        thread = np.tile(np.arange(self.threads), len(numbers))
        number = np.repeat(numbers, self.threads)
        values: dict[str, Any] = {"%laneid": thread % WARP}
        for name, sizes, flat in (("tid", block, thread), ("ctaid", grid, number)):
            for axis, size in zip("xyz", _three(sizes), strict=True):
                values[f"%{name}.{axis}"] = flat % size
                values[f"%n{name}.{axis}"] = np.full(lanes, size)
                flat = flat // size
        return {name: np.asarray(value, "u4") for name, value in values.items()}

    # --- Scheduling ------------------------------------------------------------------------------

    def run(self) -> None:
        instructions = self.kernel.instructions
        end = len(instructions)
        while True:
            ready = ~self.waits & (self.at < end)
            if not ready.any():
                break
            here = int(self.at[ready].min())
            instruction = instructions[here]
            if instruction.opcode in MEETINGS:
                self._meet(instruction, here)
            else:
                self._straight(here, self.at == here)
        if self.waits.any():
            places = sorted({int(each) for each in self.at[self.waits]})
            raise PTXError(
                f"{self.kernel.name}: threads wait for others that have gone elsewhere, at "
                + " and ".join(str(instructions[each]) for each in places)
            )

    def _straight(self, here: int, active: Array) -> None:
        """Run until threads diverge, converge, or have to wait."""
        others = self.at[~active & (self.at > here)]
        stop = min(int(others.min()) if others.size else 1 << 62, len(self.kernel.instructions))
        begin, taken, target = here, None, 0
        while here < stop and taken is None:
            instruction = self.kernel.instructions[here]
            if instruction.opcode in MEETINGS:
                break
            if instruction.opcode in ("bra", "ret"):
                target = self._target(instruction)
                taken = active & self._allowed(instruction)
            else:
                self._execute(instruction, active)
            here += 1
        self.at[active] = here
        if taken is not None:
            self.at[taken] = target
        self.counters.executed(active, here - begin)

    def _target(self, instruction: Instruction) -> int:
        if instruction.opcode == "ret":
            return len(self.kernel.instructions)
        if instruction.form not in ("bra", "bra.uni"):
            raise PTXError(f"{instruction}: not known")
        return self.kernel.labels[str(instruction.operands[0])]

    def _meet(self, instruction: Instruction, here: int) -> None:
        """Let threads continue whose whole block or warp has arrived."""
        if instruction.guard:
            raise PTXError(f"{instruction}: not known with a predicate")
        size = self.threads if instruction.opcode == "bar" else WARP
        come = self.at == here
        complete = np.repeat(come.reshape(-1, size).all(axis=1), size)
        self.waits[come] = True
        if not complete.any():
            return
        if instruction.opcode == "shfl":
            self._shuffle(instruction, complete)
        elif instruction.opcode == "vote":
            self._vote(instruction, complete)
        elif instruction.form != "bar.sync" or instruction.operands != (Immediate(0),):
            raise PTXError(f"{instruction}: not known")
        else:
            self.counters.barriers += int(np.count_nonzero(complete)) // size
        self.waits[complete] = False
        self.at[complete] = here + 1
        self.counters.executed(complete, 1)

    def _allowed(self, instruction: Instruction) -> Array | bool:
        if instruction.guard is None:
            return True
        name, value = instruction.guard
        return self._register(name) == value

    # --- Values ----------------------------------------------------------------------------------

    def _register(self, name: str) -> Array:
        """Return a register; NaN where nothing was written, since compilers move such reads."""
        if name not in self.registers:
            kind = self.kernel.registers[name]
            ones = np.zeros((), "?") if kind == "pred" else ~np.zeros((), f"u{SIZES[kind]}")
            self.registers[name] = np.broadcast_to(ones, self.at.shape)
        return self.registers[name]

    def _value(self, operand: Operand, kind: str) -> Array:
        dtype = DTYPES[kind]
        if isinstance(operand, Immediate):
            if kind == "pred":
                return np.array(operand.value != 0)
            bits = operand.value % (1 << 8 * dtype.itemsize)
            return np.array(bits, f"u{dtype.itemsize}").view(dtype)
        if not isinstance(operand, str):
            raise PTXError(f"{self.kernel.name}: {operand} is no value")
        if operand in self.kernel.registers:
            value = self._register(operand)
        elif operand in self.special:
            value = self.special[operand]
        elif operand in self.kernel.shared:
            value = np.array(self.kernel.shared[operand], f"u{dtype.itemsize}")
        else:
            raise PTXError(f"{self.kernel.name}: {operand} is not known")
        if value.dtype.itemsize != dtype.itemsize or (value.dtype.kind == "b") != (kind == "pred"):
            raise PTXError(f"{self.kernel.name}: {operand} is no {kind}")
        return value.view(dtype)

    def _stored(self, operand: Operand, size: int) -> Array:
        """Return the value of a store: the lower bits of a wider register."""
        if isinstance(operand, str) and operand in self.kernel.registers:
            value = self._register(operand)
            if value.dtype.kind == "u" and value.dtype.itemsize > size:
                return value.astype(f"u{size}")
        return self._value(operand, f"b{8 * size}")

    def _extended(self, value: Array, name: str, kind: str) -> Array:
        """Extend what is loaded by zeros, if the register is wider."""
        size = SIZES.get(self.kernel.registers.get(name, ""), 0)
        return value.astype(f"u{size}") if kind[0] == "u" and size > value.itemsize else value

    def _set(self, name: str, value: Array, active: Array) -> None:
        """Write the bits of a value to a register, in active threads."""
        if name == "_":
            return
        kind = self.kernel.registers[name]
        bits = DTYPES[kind] if kind == "pred" else np.dtype(f"u{SIZES[kind]}")
        if value.dtype.itemsize != bits.itemsize:
            raise PTXError(f"{self.kernel.name}: {name} does not hold a {value.dtype}")
        value = np.broadcast_to(value.view(bits), active.shape)
        # Never in place: registers may share an array.
        if not active.all():
            value = np.where(active, value, self._register(name))
        self.registers[name] = value

    def _addresses(self, address: Operand, active: Array) -> Array:
        if not isinstance(address, Address):
            raise PTXError(f"{self.kernel.name}: {address} is no address")
        if address.base in self.kernel.shared:
            begin = np.array(self.kernel.shared[address.base], "u8")
        else:
            kind = "u64" if self.kernel.registers.get(address.base) in ("b64", "u64") else "u32"
            begin = self._value(address.base, kind).astype("u8")
        place = begin + np.uint64(address.offset % (1 << 64))
        return np.broadcast_to(place, active.shape)[active]

    # --- Instructions ----------------------------------------------------------------------------

    def _execute(self, instruction: Instruction, active: Array) -> None:
        if instruction.guard:
            active = active & self._allowed(instruction)
            if not active.any():
                return
        try:
            special = _SPECIAL.get(instruction.opcode)
            if special and special(self, instruction, active):
                return
            operation = OPERATIONS.get(instruction.form)
            if operation is None:
                raise PTXError("not known")
            self._compute(operation, instruction, active)
        except PTXError as error:
            raise PTXError(f"{instruction}: {error}") from error

    def _compute(self, operation: Operation, instruction: Instruction, active: Array) -> None:
        target, *sources = instruction.operands
        if len(sources) != len(operation.sources):
            raise PTXError("not known with so many operands")
        values = map(self._value, sources, operation.sources)
        self._set(str(target), operation.compute(*values), active)

    def _move(self, instruction: Instruction, active: Array) -> bool:
        """Pack words into a longer one, or unpack it; other moves are operations."""
        target, source = instruction.operands
        kind = instruction.kind
        if isinstance(source, Vector):
            part = f"b{8 * SIZES[kind] // len(source.elements)}"
            parts = [self._value(each, part) for each in source.elements]
            whole = np.stack(np.broadcast_arrays(*parts), axis=-1)
            self._set(str(target), whole.view(f"u{SIZES[kind]}")[..., 0], active)
            return True
        if isinstance(target, Vector):
            size = SIZES[kind] // len(target.elements)
            parts = np.ascontiguousarray(self._value(source, kind))[..., None].view(f"u{size}")
            for place, each in enumerate(target.elements):
                self._set(each, parts[..., place], active)
            return True
        return False

    def _load_or_store(self, instruction: Instruction, active: Array) -> bool:
        opcode, space, *hints, kind = instruction.form.split(".")
        loads = opcode == "ld"
        value, address = instruction.operands if loads else instruction.operands[::-1]
        parts = value.elements if isinstance(value, Vector) else (value,)
        count, size = len(parts), SIZES[kind]
        known = {f"v{count}"}
        if space == "global":
            known.add("nc" if loads else "cg")  # hints to caches
        if not set(hints) <= known or (f"v{count}" in hints) != (count > 1):
            raise PTXError("not known")
        if space == "param" and loads and isinstance(address, Address):
            given = self.parameters[address.base]
            self._set(str(value), np.frombuffer(given, f"u{size}", 1, address.offset), active)
            return True
        if space not in ("global", "shared"):
            raise PTXError("not known")
        addresses = self._addresses(address, active)
        access = self._global if space == "global" else self._shared
        if loads:
            elements = access(addresses, active, size, count, None)
            for place, name in enumerate(parts):
                whole = np.zeros(active.shape, f"u{size}")
                whole[active] = elements[:, place]
                self._set(str(name), self._extended(whole, str(name), kind), active)
        else:
            values = [np.broadcast_to(self._stored(each, size), active.shape) for each in parts]
            access(addresses, active, size, count, np.stack([e[active] for e in values], axis=1))
        return True

    def _global(
        self, addresses: Array, active: Array, size: int, count: int, values: Array | None
    ) -> Array:
        kinds = self.counters.reads if values is None else self.counters.writes
        warps = self.warp[active]
        elements = np.empty((len(addresses), count), f"u{size}") if values is None else values
        for allocation, part in self.memory.allocations_at(addresses, size * count):
            places = addresses[part]
            traffic = kinds.setdefault(allocation.name, Traffic())
            traffic.add(allocation.begin, allocation.bytes.size, places, warps[part], size * count)
            if values is None:
                elements[part] = self.memory.load(allocation, places, size, count)
            else:
                self.memory.store(allocation, places, values[part])
        return elements

    def _shared(
        self, addresses: Array, active: Array, size: int, count: int, values: Array | None
    ) -> Array:
        width = size * count
        if np.any(addresses % width) or int(addresses.max()) + width > self.kernel.shared_bytes:
            raise PTXError(f"an access of {width} bytes beyond shared memory, or not aligned")
        counter = self.counters.shared_reads if values is None else self.counters.shared_writes
        counter.add(addresses, self.warp[active], width)
        words = self.shared.view(f"u{size}")
        places = (addresses.astype("i8") // size)[:, None] + np.arange(count)
        blocks = self.block[active][:, None]
        if values is None:
            return words[blocks, places]
        words[blocks, places] = values
        return values

    def _shuffle(self, instruction: Instruction, active: Array) -> None:
        if instruction.form != "shfl.sync.bfly.b32":
            raise PTXError(f"{instruction}: not known")
        *targets, source, flip, clamp, members = instruction.operands
        if not self._is(members, ALL_LANES, active) or not self._is(clamp, WARP - 1, active):
            raise PTXError(f"{instruction}: not known for parts of a warp")
        values = np.broadcast_to(self._value(source, "b32"), active.shape)
        lane = np.arange(len(active))
        other = lane ^ (self._value(flip, "u32").astype("i8") % WARP)
        self._set(str(targets[0]), values[other], active)
        for each in targets[1:]:
            self._set(str(each), np.ones(active.shape, bool), active)

    def _vote(self, instruction: Instruction, active: Array) -> None:
        target, source, members = instruction.operands
        if instruction.form != "vote.sync.all.pred" or not self._is(members, ALL_LANES, active):
            raise PTXError(f"{instruction}: not known")
        votes = np.broadcast_to(self._value(source, "pred"), active.shape).reshape(-1, WARP)
        self._set(str(target), np.repeat(votes.all(axis=1), WARP), active)

    def _is(self, operand: Operand, number: int, active: Array) -> bool:
        """Return whether a value is that number in all active threads."""
        values = np.broadcast_to(self._value(operand, "u32"), active.shape)
        return bool(np.all(values[active] == number))

    def _to_global(self, instruction: Instruction, active: Array) -> bool:
        """Copy a generic address, which equals the address in global memory."""
        if instruction.form != "cvta.to.global.u64":
            return False
        target, source = instruction.operands
        self._set(str(target), self._value(source, "u64"), active)
        return True


_SPECIAL: dict[str, Callable[[_Blocks, Instruction, Array], bool]] = {
    "mov": _Blocks._move,
    "ld": _Blocks._load_or_store,
    "st": _Blocks._load_or_store,
    "cvta": _Blocks._to_global,
}
