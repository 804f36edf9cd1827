"""The collectives of a compiled program and their bytes, from the text of the optimised HLO.

A collective in a loop is counted once per iteration. An asynchronous one that XLA:TPU spreads over
several fusions stands in each of them, and is counted once. Of the branches of a conditional, the
one that sends the most bytes is counted. `payload` is the size of the array on one device that an
all-reduce reduces, an all-gather returns or a reduce-scatter takes. `sent` is the number of bytes
that one device sends with ring algorithms: 2 (n − 1)/n of the payload for an all-reduce, all of it
for a permute, (n − 1)/n for the others.

    python -m benchmarks.collectives FILE      the HLO text of a program, or - for standard input
"""

from __future__ import annotations

import math
import pathlib
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_BITS = {"pred": 8, "bf16": 16, "f8e4m3fn": 8, "f8e5m2": 8}  # other names end with their width

_COMPUTATION = re.compile(r"^(?:ENTRY\s+)?%?([\w.\-]+)\s*(?:\([^=]*\))?.*\{\s*$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT\s+)?%?([\w.\-]+) = (.*)$")
_OPERATION = re.compile(r"(?<![\w.\-%])([a-z][\w\-]*)\(")
_SHAPE = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\]")
_CALLED = re.compile(
    r"(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)"
)
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_CONSTANT = re.compile(r"[su]32\[\]\S* constant\((\d+)\)")
_INDEX = re.compile(r" get-tuple-element\(.*index=(\d+)")
_TRIPS = re.compile(r'known_trip_count"?[:=]\s*\{"?n"?[:=]\s*"?(\d+)')
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_CHANNEL = re.compile(r"channel_id=(\d+)")
_GROUPS = re.compile(r"replica_groups=\{\{([\d,]*)\}")
# JAX 0.12: mesh['x'=8] {'x'} is a whole mesh axis, {'x':(2)4} a part of it with 4 devices.
_MESH_GROUPS = re.compile(r"replica_groups=mesh\[(.*?)\]\s*\{([^}]*)\}")
_MESH_AXIS = re.compile(r"'([^']+)'(?::\(\d+\)(\d+))?")
_IOTA_GROUPS = re.compile(r"replica_groups=\[(\d+),(\d+)\]")


class Collective(NamedTuple):
    """One instruction of a program."""

    kind: str
    payload_bytes: int
    group: int  # devices in one of its groups
    times: int  # how often it runs
    in_unknown_loop: bool  # inside a loop of unknown trip count, taken as 1

    @property
    def sent_bytes(self) -> int:
        """Bytes sent by one device in all runs, with ring algorithms."""
        part = (self.group - 1) / self.group
        factor = {"all-reduce": 2 * part, "collective-permute": 1.0}.get(self.kind, part)
        return round(factor * self.payload_bytes * self.times)


class Total(NamedTuple):
    """All collectives of one kind."""

    count: int
    payload_bytes: int
    sent_bytes: int
    largest_bytes: int  # the payload of the largest one


class _Instruction(NamedTuple):
    name: str
    operation: str
    result: str  # its type
    text: str


def find(hlo: str, devices: int) -> list[Collective]:
    """Every collective of a module, with how often it runs."""
    computations, entry = _parse(hlo)
    return list(_walk(computations, entry, 1, False, devices))


def totals(hlo: str, devices: int) -> dict[str, Total]:
    """Totals by kind, without the kinds that do not occur."""
    groups: dict[str, list[Collective]] = defaultdict(list)
    for collective in find(hlo, devices):
        groups[collective.kind].append(collective)
    return {
        kind: Total(
            sum(c.times for c in groups[kind]),
            sum(c.payload_bytes * c.times for c in groups[kind]),
            sum(c.sent_bytes for c in groups[kind]),
            max(c.payload_bytes for c in groups[kind]),
        )
        for kind in KINDS
        if kind in groups
    }


def cycles(hlo: str) -> int | None:
    """The compiler's estimate of the cycles of a module, loops by their trips; None without one.

    XLA:TPU notes it at each fusion and product. Of the branches of a conditional the longest
    counts.
    """
    computations, entry = _parse(hlo)
    found = [_CYCLES.search(i.text) for body in computations.values() for i in body]
    return _cycles(computations, entry) if any(found) else None


def _cycles(computations: dict[str, list[_Instruction]], name: str) -> int:
    total = 0
    for instruction in computations.get(name, ()):
        noted = _CYCLES.search(instruction.text)
        if noted:
            total += int(noted[1])
            continue
        inside = [
            runs * _cycles(computations, called)
            for called, runs, _ in _calls(computations, instruction, computations[name])
        ]
        total += max(inside, default=0) if instruction.operation == "conditional" else sum(inside)
    return total


# --- reading the text -----------------------------------------------------------------------------


def _parse(hlo: str) -> tuple[dict[str, list[_Instruction]], str]:
    computations: dict[str, list[_Instruction]] = {}
    entry, current = "", None
    for line in hlo.splitlines():
        instruction = _INSTRUCTION.match(line)
        if instruction and current is not None:
            found = _OPERATION.search(instruction[2])
            if found:
                result = instruction[2][: found.start()]
                current.append(_Instruction(instruction[1], found[1], result, instruction[2]))
            continue
        opening = _COMPUTATION.match(line)
        if opening and not line.startswith("HloModule"):
            current = computations.setdefault(opening[1], [])
            if line.startswith("ENTRY"):
                entry = opening[1]
    return computations, entry


def _walk(
    computations: dict[str, list[_Instruction]],
    name: str,
    times: int,
    unknown: bool,
    devices: int,
) -> Iterator[Collective]:
    spanning: set[tuple[str, ...]] = set()  # channels of asynchronous collectives seen in fusions
    for instruction in computations.get(name, ()):
        kind = instruction.operation.removesuffix("-start")
        if kind in KINDS:
            group = _group_size(instruction.text, devices)
            payload = _payload(kind, instruction, group)
            yield Collective(kind, payload, group, times, unknown)
            continue
        # An asynchronous call is counted at its start; its update and its end repeat its name.
        if instruction.operation in ("async-update", "async-done"):
            continue
        if instruction.operation == "fusion":
            channels = _channels(computations, instruction)
            if channels and channels <= spanning:
                continue
            spanning |= channels
        inside = [
            list(_walk(computations, called, times * runs, unknown or not known, devices))
            for called, runs, known in _calls(computations, instruction, computations[name])
        ]
        if instruction.operation == "conditional":
            inside = [max(inside, key=_all_sent, default=[])]
        for collectives in inside:
            yield from collectives


def _channels(
    computations: dict[str, list[_Instruction]], fusion: _Instruction
) -> set[tuple[str, ...]]:
    """Kind and channel of each collective in a fusion."""
    inside = [i for name in _CALLED.findall(fusion.text) for i in computations.get(name, ())]
    kinds = [(i.operation.removesuffix("-start"), _CHANNEL.search(i.text)) for i in inside]
    return {(kind, channel[1]) for kind, channel in kinds if kind in KINDS and channel}


def _all_sent(collectives: list[Collective]) -> int:
    return sum(c.sent_bytes for c in collectives)


def _calls(
    computations: dict[str, list[_Instruction]],
    instruction: _Instruction,
    around: list[_Instruction],
) -> Iterator[tuple[str, int, bool]]:
    """Names of the called computations, how often each runs, and whether that is known."""
    loop = instruction.operation == "while"
    trips = _trips(computations, instruction, around) if loop else 1
    names = _CALLED.findall(instruction.text)
    for branches in _BRANCHES.findall(instruction.text):
        names += [name.strip().lstrip("%") for name in branches.split(",")]
    for name in names:
        yield name, trips or 1, trips is not None


def _trips(
    computations: dict[str, list[_Instruction]], loop: _Instruction, around: list[_Instruction]
) -> int | None:
    """The trip count that XLA:CPU and XLA:GPU annotate, else that of `i < constant` from 0.

    A windowed product of XLA:TPU may take two steps at a time.
    """
    noted = _TRIPS.search(loop.text)
    if noted:
        return int(noted[1])
    condition = re.search(r"condition=%?([\w.\-]+)", loop.text)
    inside = computations.get(condition[1], []) if condition else []
    constants = [c for i in inside if (c := _CONSTANT.search(i.text))]
    compares = [i for i in inside if i.operation == "compare" and "direction=LT" in i.text]
    if not len(constants) == len(compares) == 1:
        return None
    return -(-int(constants[0][1]) // _stride(computations, loop, around, inside))


def _stride(
    computations: dict[str, list[_Instruction]],
    loop: _Instruction,
    around: list[_Instruction],
    condition: list[_Instruction],
) -> int:
    """What the body of a loop adds to its counter: a constant, there or in the loop's state."""
    found = re.search(r"body=%?([\w.\-]+)", loop.text)
    body = {i.name: i for i in computations.get(found[1] if found else "", [])}
    outside = {i.name: i for i in around}
    counter = next((k for i in condition if (k := _INDEX.search(i.text))), None)
    root = next((i for i in reversed(body.values()) if i.operation == "tuple"), None)
    if counter is None or root is None:
        return 1
    added = body.get(_operands(root)[int(counter[1])])
    for name in _operands(added) if added and added.operation == "add" else ():
        operand = body.get(name)
        if operand is not None and (index := _INDEX.search(operand.text)):
            state = outside.get(_operands(loop)[0])
            held = _operands(state)[int(index[1])] if state else ""
            operand = outside.get(held)
        if operand is not None and (constant := _CONSTANT.search(operand.text)):
            return int(constant[1])
    return 1


def _operands(instruction: _Instruction) -> list[str]:
    """Names of the operands."""
    inside = instruction.text[len(instruction.result) + len(instruction.operation) :]
    return re.findall(r"%([\w.\-]+)", inside[: inside.find(")")])


def _group_size(text: str, devices: int) -> int:
    mesh = _MESH_GROUPS.search(text)
    if mesh:
        whole = dict(re.findall(r"'([^']+)'=(\d+)", mesh[1]))
        return math.prod(int(part or whole[name]) for name, part in _MESH_AXIS.findall(mesh[2]))
    iota = _IOTA_GROUPS.search(text)
    if iota:
        return int(iota[2])
    listed = _GROUPS.search(text)
    return len(listed[1].split(",")) if listed and listed[1] else devices


def _payload(kind: str, instruction: _Instruction, group: int) -> int:
    """From the result's type; an asynchronous start returns operands, then results."""
    sizes = [_bytes(dtype, dims) for dtype, dims in _SHAPE.findall(instruction.result)]
    if kind == "all-reduce" and instruction.result.startswith("(("):  # of XLA:GPU
        return sum(sizes) // 2
    if instruction.operation.endswith("-start") and kind != "all-reduce":
        sizes = [max(sizes)] if len(sizes) <= 4 else sizes[len(sizes) // 2 :]
        return sum(sizes)
    return sum(sizes) * (group if kind == "reduce-scatter" else 1)


def _bytes(dtype: str, dims: str) -> int:
    width = re.search(r"\d+", dtype)
    bits = _BITS.get(dtype) or (int(width[0]) if width else 0)
    return math.prod(int(d) for d in dims.split(",") if d) * bits // 8


def main() -> None:
    """Print the table of a file."""
    name = sys.argv[1]
    hlo = sys.stdin.read() if name == "-" else pathlib.Path(name).read_text(encoding="utf-8")
    partitions = re.search(r"num_partitions=(\d+)", hlo)
    devices = int(partitions[1]) if partitions else 1
    for kind, total in totals(hlo, devices).items():
        print(f"{kind}: {total.count} times, {total.payload_bytes} bytes, {total.sent_bytes} sent")


if __name__ == "__main__":
    main()
