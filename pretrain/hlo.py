"""What a compiled program does, read from its text: collectives, memory traffic, the compiler's own clock.

XLA's `cost_analysis` counts the body of a loop once. Here everything counts as often as it runs: a scan over
24 layers has its body 24 times.
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence

COLLECTIVES = (
    "all-reduce", "all-gather", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute",
    "collective-broadcast",
)  # fmt: skip

_COMPUTATION = re.compile(r"^(ENTRY )?%([\w.-]+) \(")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%([\w.-]+) = (.*)$")
_OPCODE = re.compile(r"(?<= )([a-z][\w-]*)\(")
_ARRAY = re.compile(r"\b(pred|bf16|[suf]\d+\w*|c64|c128)\[([\d,<=]*)\]({[^}]*})?")
_CALLED = re.compile(
    r"\b(condition|body|calls|to_apply|branch_computations|true_computation|false_computation)="
    r"({[^}]*}|%[\w.-]+)"
)
_TRIPS = re.compile(r'"known_trip_count":{"n":"(\d+)"}')
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_KERNEL = re.compile(r'"cost_estimate":{"flops":"(\d+)"[^}]*"bytes_accessed":"(\d+)"')
_MOVES_NOTHING = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call",
    "after-all", "partition-id", "replica-id", "opt-barrier", "iota",
}  # fmt: skip
_BETWEEN_SLICES = re.compile(r'_xla_host_transfer_rendezvous="([a-z-]+)')
_NO_ESTIMATE = 10**15  # the compiler writes a larger number where it has none


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line: `name = type opcode(arguments), attributes`."""

    name: str
    type: str
    opcode: str
    arguments: str
    attributes: str
    is_root: bool

    @property
    def operands(self) -> list[str]:
        return re.findall(r"%([\w.-]+)", self.arguments)

    @property
    def called(self) -> dict[str, list[str]]:
        """The computations that it calls, by what for."""
        return {role: re.findall(r"%([\w.-]+)", names) for role, names in _CALLED.findall(self.attributes)}


Computation = dict[str, Instruction]
Program = Mapping[str, Computation]


@dataclasses.dataclass(frozen=True)
class Collective:
    """What groups of so many devices, or of slices, exchange in a run of the program: how often, how much.

    bytes: on one device, of the whole arrays that are gathered, reduced or sent.
    """

    kind: str
    members: int
    between_slices: bool
    count: int
    bytes: int

    @property
    def link_bytes(self) -> float:
        """What one device sends at least, in a ring."""
        share = (self.members - 1) / self.members
        return self.bytes * {"all-reduce": 2 * share, "collective-permute": 1.0}.get(self.kind, share)


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of a run on one device.

    bytes: read and written in main memory; cycles: 0 where none are estimated; kernels: of each, how often it
    runs, and the operations and bytes that whoever wrote it says it takes, for which there are no cycles;
    searches: loops that do not say how often they turn, and count once.
    """

    collectives: Sequence[Collective]
    bytes: float
    cycles: float
    kernels: Sequence[tuple[int, float, float]]
    searches: int


def cost(text: str, devices: int, slices: int = 1) -> Cost:
    """The cost of a compiled program (`jax.stages.Compiled.as_text()`) that runs on so many devices."""
    program, entry = parse(text)
    exchanged: dict[tuple[str, int, bool], list[int]] = {}
    traffic, cycles, kernels, searches = 0.0, 0.0, [], 0
    for times, computation, fused in _runs(program, entry):
        for instruction in computation.values():
            searches += instruction.opcode == "while" and _turns(instruction, computation, program) is None
            if key := _exchange(instruction, devices, slices):
                total = exchanged.setdefault(key, [0, 0])
                total[0] += times
                total[1] += times * _whole_bytes(key[0], instruction, computation, key[1])
            if not fused:
                traffic += times * _traffic(instruction, computation, program)
                found = _CYCLES.search(instruction.attributes)
                cycles += times * int(found[1]) if found and int(found[1]) < _NO_ESTIMATE else 0
                if found := _KERNEL.search(instruction.attributes):
                    kernels.append((times, float(found[1]), float(found[2])))
    collectives = [Collective(*key, *total) for key, total in exchanged.items() if key[1] > 1]
    return Cost(sorted(collectives, key=lambda each: -each.link_bytes), traffic, cycles, kernels, searches)


def _exchange(instruction: Instruction, devices: int, slices: int) -> tuple[str, int, bool] | None:
    """(kind, members of a group, whether they are slices), if it is an exchange."""
    kind = instruction.opcode.removesuffix("-start")
    if kind in COLLECTIVES:
        return kind, _group_size(instruction.attributes, devices), False
    if kind == "send" and (found := _BETWEEN_SLICES.search(instruction.attributes)):
        return found[1].rstrip("-"), slices, True
    return None


def parse(text: str) -> tuple[Program, str]:
    """All computations by name, and the name of the one that is run."""
    program: dict[str, Computation] = {}
    entry, current = "", Computation()
    for line in text.splitlines():
        if head := _COMPUTATION.match(line):
            current = program[head[2]] = {}
            entry = head[2] if head[1] else entry
        elif found := _INSTRUCTION.match(line):
            current[found[2]] = _instruction(found[2], found[3], is_root=bool(found[1]))
    if not entry:
        raise ValueError("The text of the program has no ENTRY.")
    return program, entry


def _instruction(name: str, rest: str, is_root: bool) -> Instruction:
    opcode = _OPCODE.search(rest)
    if opcode is None:
        raise ValueError(f"No operation in %{name} = {rest[:100]}.")
    end, depth = opcode.end(), 1
    while depth:  # to the parenthesis that closes the arguments
        depth += {"(": 1, ")": -1}.get(rest[end], 0)
        end += 1
    arguments, attributes = rest[opcode.end() : end - 1], rest[end:]
    return Instruction(name, rest[: opcode.start()], opcode[1], arguments, attributes, is_root)


def _runs(program: Program, entry: str) -> Iterator[tuple[int, Computation, bool]]:
    """Everything that runs: how often, what, and whether it is part of one operation, such as a fusion."""
    todo = [(1, entry, False)]
    while todo:
        times, name, fused = todo.pop()
        yield times, program[name], fused
        for instruction in program[name].values():
            if instruction.opcode.endswith(("-update", "-done")):
                continue  # names again what its -start calls
            turns = 1
            if instruction.opcode == "while":
                turns = _turns(instruction, program[name], program) or 1
            part = fused or instruction.opcode not in ("while", "conditional", "call")
            for role, called in instruction.called.items():
                if role != "to_apply" or instruction.opcode == "call":  # a reduction's adds two numbers
                    todo += [(times * turns, each, part) for each in called]


def _turns(loop: Instruction, computation: Computation, program: Program) -> int | None:
    """How often a loop turns, as it says itself or by a count that goes up by one; None for any other."""
    if known := _TRIPS.search(loop.attributes):
        return int(known[1])
    condition = program[loop.called["condition"][0]]
    root = next(instruction for instruction in condition.values() if instruction.is_root)
    operands = [condition[name] for name in root.operands]
    if root.opcode != "compare" or "direction=LT" not in root.attributes or len(operands) != 2:
        return None
    count, limit = operands
    index = re.search(r"index=(\d+)", count.attributes)
    if count.opcode != "get-tuple-element" or index is None or not limit.arguments.isdigit():
        return None
    before = computation[loop.operands[0]]
    first = _source(before.operands[int(index[1])], computation) if before.opcode == "tuple" else None
    if first is None or not first.arguments.isdigit():
        return None
    return int(limit.arguments) - int(first.arguments)


def _source(name: str, computation: Computation) -> Instruction:
    """What made an array, before it was copied or seen in another shape."""
    instruction = computation[name]
    while instruction.opcode in ("copy", "bitcast", "copy-done", "copy-start"):
        instruction = computation[instruction.operands[0]]
    return instruction


def _bytes(type: str) -> list[int]:
    """Of every array in a type; 0 for one in the memory of a core, S(1) and up."""
    return [
        0
        if "S(" in layout
        else math.prod(int(size.lstrip("<=")) for size in shape.split(",") if size) * _width(dtype)
        for dtype, shape, layout in _ARRAY.findall(type)
    ]


def _width(dtype: str) -> int:
    digits = re.search(r"\d+", dtype)
    return max(int(digits[0]) // 8, 1) if digits else 1


def _whole_bytes(kind: str, instruction: Instruction, computation: Computation, devices: int) -> int:
    """Of the arrays that a collective is about, wherever they lie."""
    if instruction.opcode == "send":
        return sum(_all_bytes(computation[instruction.operands[0]])) * (
            devices if kind == "all-gather" else 1
        )
    if not instruction.opcode.endswith("-start"):
        return sum(_all_bytes(instruction)) * (devices if kind == "reduce-scatter" else 1)
    # The type of a beginning holds operands and results: what is gathered is the larger, all else alike.
    operands = sum(sum(_all_bytes(computation[name])) for name in instruction.operands)
    return operands * (devices if kind == "all-gather" else 1)


def _group_size(attributes: str, devices: int) -> int:
    """How many devices a group has, in any of the ways in which XLA writes them."""
    if "source_target_pairs={{" in attributes:
        return 2
    if listed := re.search(r"replica_groups={{([\d,]+)}", attributes):
        return len(listed[1].split(","))
    if iota := re.search(r"replica_groups=\[\d+,(\d+)\]<=", attributes):
        return int(iota[1])
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\] ?{([^}]*)}", attributes):
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", mesh[1])}
        return math.prod(sizes[name] for name in re.findall(r"'(\w+)'", mesh[2]))
    return devices


def _traffic(instruction: Instruction, computation: Computation, program: Program) -> int:
    """Bytes that an operation reads and writes in main memory: operands and results; of slices, the slice."""
    opcode = instruction.opcode
    if opcode in _MOVES_NOTHING or opcode.endswith(("-done", "-update")):
        return 0
    if 'custom_call_target="AllocateBuffer"' in instruction.attributes:
        return 0
    if opcode == "fusion":
        inside = program[instruction.called["calls"][0]]
        return _read_inside(instruction, computation, inside, program) + _written(
            _root(inside), inside, program
        )
    operands = [sum(_bytes(computation[name].type)) for name in instruction.operands]
    if opcode == "copy-start":
        return sum(_bytes(instruction.type)[:2])  # of (to, from, context)
    if opcode in ("slice-start", "dynamic-slice-start", "async-start"):
        return sum(_bytes(instruction.type)[len(operands) :]) + sum(_all_bytes(instruction)[len(operands) :])
    if opcode.endswith("-start"):
        return sum(_bytes(instruction.type))
    if opcode in ("dynamic-slice", "slice", "gather"):
        return 2 * sum(_bytes(instruction.type))
    if opcode == "dynamic-update-slice":
        return 2 * operands[1]
    return sum(operands) + sum(_bytes(instruction.type))


def _all_bytes(instruction: Instruction) -> list[int]:
    """As `_bytes`, wherever the arrays lie."""
    return _bytes(instruction.type.replace("S(", ""))


def _root(computation: Computation) -> Instruction:
    return next(instruction for instruction in computation.values() if instruction.is_root)


def _read_inside(fusion: Instruction, computation: Computation, inside: Computation, program: Program) -> int:
    read = 0
    for instruction in inside.values():
        if instruction.opcode == "parameter":
            whole = sum(_bytes(computation[fusion.operands[int(instruction.arguments)]].type))
            part = _read(instruction.name, inside, program)
            read += whole if part is None else min(part, whole)
    return read


def _read(name: str, inside: Computation, program: Program) -> int | None:
    """Bytes that a fusion reads of an array, where all it takes of it are slices; None: all of it."""
    total = 0
    for reader in inside.values():
        if name not in reader.operands:
            continue
        if reader.opcode in ("dynamic-slice", "slice"):
            part: int | None = sum(_all_bytes(reader))
        elif reader.opcode == "dynamic-update-slice" and reader.operands[0] == name:
            part = 0  # what is not replaced stays where it is
        elif reader.opcode == "bitcast":
            part = _read(reader.name, inside, program)
        elif reader.opcode == "fusion":
            within = program[reader.called["calls"][0]]
            at = str(reader.operands.index(name))
            parameter = next(
                each for each in within.values() if each.opcode == "parameter" and each.arguments == at
            )
            part = _read(parameter.name, within, program)
        else:
            return None
        if part is None:
            return None
        total += part
    return total


def _written(made: Instruction, inside: Computation, program: Program) -> int:
    """Bytes of what a fusion returns; of an array that it changes in place, the part that changes."""
    if made.opcode == "tuple":
        return sum(_written(inside[name], inside, program) for name in made.operands)
    if made.opcode == "bitcast":
        return _written(inside[made.operands[0]], inside, program)
    if made.opcode == "fusion":
        within = program[made.called["calls"][0]]
        return min(_written(_root(within), within, program), sum(_bytes(made.type)))
    if made.opcode == "dynamic-update-slice":
        return sum(_all_bytes(inside[made.operands[1]]))
    return sum(_bytes(made.type))
