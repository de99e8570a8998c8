"""What a compiled program does, read from its text: collectives, memory traffic, the compiler's own clock.

XLA's `cost_analysis` counts the body of a loop once. Here everything counts as often as it runs: a scan over
24 layers has its body 24 times.
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")

_COMPUTATION = re.compile(r"^(ENTRY )?%([\w.-]+) \(")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%([\w.-]+) = (.*)$")
_OPCODE = re.compile(r"(?<= )([a-z][\w-]*)\(")
_ARRAY = re.compile(r"\b(pred|bf16|[suf]\d+\w*|c64|c128)\[([\d,]*)\]({[^}]*})?")
_CALLED = re.compile(r"\b(condition|body|calls|to_apply|branch_computations)={?(%[^}\s]+?)(?=[,}\s]|$)")
_TRIPS = re.compile(r'"known_trip_count":{"n":"(\d+)"}')
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
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
    def called(self) -> dict[str, str]:
        """The computations that it calls, by what for."""
        return {role: name.lstrip("%") for role, name in _CALLED.findall(self.attributes)}


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
    """Of a run on one device. bytes: read and written in main memory; cycles: 0 where none are estimated."""

    collectives: Sequence[Collective]
    bytes: float
    cycles: float


def cost(text: str, devices: int, slices: int = 1) -> Cost:
    """The cost of a compiled program (`jax.stages.Compiled.as_text()`) that runs on so many devices."""
    program, entry = parse(text)
    exchanged: dict[tuple[str, int, bool], list[int]] = {}
    traffic, cycles = 0.0, 0.0
    for times, computation, fused in _runs(program, entry):
        for instruction in computation.values():
            if key := _exchange(instruction, devices, slices):
                total = exchanged.setdefault(key, [0, 0])
                total[0] += times
                total[1] += times * _whole_bytes(key[0], instruction, computation, key[1])
            if not fused:
                traffic += times * _traffic(instruction, computation, program)
                found = _CYCLES.search(instruction.attributes)
                cycles += times * int(found[1]) if found and int(found[1]) < _NO_ESTIMATE else 0
    collectives = [Collective(*key, *total) for key, total in exchanged.items() if key[1] > 1]
    return Cost(sorted(collectives, key=lambda each: -each.link_bytes), traffic, cycles)


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
            turns = _turns(instruction, program) if instruction.opcode == "while" else 1
            part = fused or instruction.opcode not in ("while", "conditional", "call")
            for role, called in instruction.called.items():
                if role != "to_apply" or instruction.opcode == "call":  # a reduction's adds two numbers
                    todo.append((times * turns, called, part))


def _turns(loop: Instruction, program: Program) -> int:
    """How often a loop turns; one that says so nowhere, such as a search, counts once."""
    if known := _TRIPS.search(loop.attributes):
        return int(known[1])
    condition = program[loop.called["condition"]]
    root = next(instruction for instruction in condition.values() if instruction.is_root)
    if root.opcode == "compare" and "direction=LT" in root.attributes:
        limits = [condition[name] for name in root.operands if condition[name].opcode == "constant"]
        if limits and limits[0].arguments.isdigit():
            return int(limits[0].arguments)
    return 1


def _bytes(type: str) -> list[int]:
    """Of every array in a type; 0 for one in the memory of a core, S(1) and up."""
    return [
        0 if "S(" in layout else math.prod(map(int, filter(None, shape.split(",")))) * _width(dtype)
        for dtype, shape, layout in _ARRAY.findall(type)
    ]


def _width(dtype: str) -> int:
    digits = re.search(r"\d+", dtype)
    return max(int(digits[0]) // 8, 1) if digits else 1


def _whole_bytes(kind: str, instruction: Instruction, computation: Computation, devices: int) -> int:
    """Of the arrays that a collective is about, wherever they lie."""
    type = instruction.type.replace("S(", "")
    if instruction.opcode == "send":
        return sum(_bytes(computation[instruction.operands[0]].type.replace("S(", "")))
    if not instruction.opcode.endswith("-start"):
        return sum(_bytes(type)) * (devices if kind == "reduce-scatter" else 1)
    # The type of a beginning holds operands and results: what is gathered is the larger, all else alike.
    operands = sum(sum(_bytes(computation[name].type.replace("S(", ""))) for name in instruction.operands)
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
    if instruction.opcode in _MOVES_NOTHING or instruction.opcode.endswith("-done"):
        return 0
    if instruction.opcode == "fusion":
        return _fusion_traffic(instruction, computation, program[instruction.called["calls"]])
    operands = [sum(_bytes(computation[name].type)) for name in instruction.operands]
    if instruction.opcode.endswith("-start"):
        return 2 * sum(operands[:1])
    if instruction.opcode in ("dynamic-slice", "slice", "gather"):
        return 2 * sum(_bytes(instruction.type))
    if instruction.opcode == "dynamic-update-slice":
        return 2 * operands[1]
    return sum(operands) + sum(_bytes(instruction.type))


def _fusion_traffic(fusion: Instruction, computation: Computation, inside: Computation) -> int:
    users: dict[str, list[Instruction]] = {}
    for instruction in inside.values():
        for name in instruction.operands:
            users.setdefault(name, []).append(instruction)
    read, updated = 0, set[str]()
    for instruction in inside.values():
        if instruction.opcode != "parameter":
            continue
        outer = _bytes(computation[fusion.operands[int(instruction.arguments)]].type)
        whole = sum(outer)
        readers = users.get(instruction.name, [])
        if readers and all(each.opcode in ("dynamic-slice", "slice") for each in readers):
            whole = min(whole, sum(sum(_bytes(each.type)) for each in readers))
        elif readers and all(_updates(each, instruction.name) for each in readers):
            updated.update(each.name for each in readers)
            whole = 0
        read += whole
    written = sum(_bytes(fusion.type))
    for name in updated:
        update = inside[inside[name].operands[1]]
        written += sum(_bytes(update.type)) - min(sum(_bytes(inside[name].type)), written)
    return read + written


def _updates(instruction: Instruction, name: str) -> bool:
    return instruction.opcode == "dynamic-update-slice" and instruction.operands[0] == name
