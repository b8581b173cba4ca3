"""How long the collectives of an optimised HLO program take, and how much of that no computation hides.

The time of a collective is the number of bytes that each chip sends in a ring, divided by a chip's interconnect
bandwidth. This is a lower bound: it ignores latency, the shape of the torus (how many of a chip's links a ring can
use), contention with other rings, and the slower network between slices. The program is in the order of its schedule
(`is_scheduled=true`), so instructions between the start and the end of an asynchronous collective hide it.
"""

from __future__ import annotations

import dataclasses
import math
import re

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
Computations = dict[str, list[str]]
_INSTRUCTION = re.compile(r"\s*(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\(%?([\w.\-]*)")


@dataclasses.dataclass(frozen=True)
class Collective:
    """A collective's kind, and the bytes that each chip sends."""

    kind: str
    bytes: float


@dataclasses.dataclass(frozen=True)
class Event:
    """What a line does on the interconnect.

    Attributes:
      phase: "start" or "done" of an asynchronous collective, or "now" for a synchronous one.
      key: the same for start and end of one collective.
      collective: None for an end.
    """

    phase: str
    key: str
    collective: Collective | None


class Link:
    """The interconnect of one chip, in parallel to its arithmetic: one collective at a time, in the order of starts.

    Attributes:
      now: cycles that the program has run so far, including waits.
      total: cycles of all collectives.
      exposed: cycles that the program waited for collectives.
    """

    def __init__(self, cycles_per_byte: float) -> None:
        self.now = self.total = self.exposed = self._free = 0.0
        self._rate, self._ends = cycles_per_byte, dict[str, float]()

    def follow(self, event: Event) -> None:
        """Starts a collective, waits for one, or both."""
        if event.collective:
            took = event.collective.bytes * self._rate
            self._free = self._ends[event.key] = max(self._free, self.now) + took
            self.total += took
        if event.phase != "start":
            self._wait(self._ends.pop(event.key, self.now))

    def finish(self) -> None:
        """Waits for collectives whose end was not seen."""
        self._wait(max(self._ends.values(), default=self.now))

    def _wait(self, end: float) -> None:
        self.exposed += max(0.0, end - self.now)
        self.now = max(self.now, end)


def event(line: str, name: str, computations: Computations, devices: int) -> Event | None:
    """The event of a line of the computation `name`, or None. `devices` is the number of devices of the program.

    libtpu writes asynchronous collectives in three ways: as `all-gather-start` and `-done`; as `async-start` and
    `-done` around a computation; and as several fusions that contain the same collective, with the same channel: one
    calls "AsyncCollectiveStart", one or more compute meanwhile, and one calls "AsyncCollectiveDone".
    """
    match = _INSTRUCTION.match(line)
    if not match:
        return None
    own, result, operation, operand = match.groups()
    kind, _, phase = operation.rpartition("-")
    if kind in KINDS and phase == "start":
        done = next((x for x in computations[name] if f" {kind}-done(" in x and _operand(x) == own), None)
        # If the end is missing, the result is the last array of the start's type.
        end = _INSTRUCTION.match(done) if done else None
        whole = end.group(2) if end else re.findall(r"\w+\[[\d,]+\]", result)[-1]
        return Event("start", own, _collective(kind, whole, line, devices))
    if kind in KINDS and phase == "done":
        return Event("done", operand, None)
    if operation in KINDS:
        return Event("now", own, _collective(operation, result, line, devices))
    if operation == "async-done":
        while (before := _defining(operand, computations[name])) and " async-update(" in before:
            operand = _operand(before)
        return Event("done", operand, None)
    return _wrapped(line, own, computations, devices) if operation in ("async-start", "fusion") else None


def _wrapped(line: str, own: str, computations: Computations, devices: int) -> Event | None:
    """The event of a fusion or an `async-start` whose computation contains a collective; None for others."""
    called = re.search(r"calls=%?([\w.\-]+)", line)
    inner = _inside(called.group(1), computations) if called else []
    found = next((x for x in inner if (m := _INSTRUCTION.match(x)) and m.group(3) in KINDS), None)
    if found is None:
        return None
    match = _INSTRUCTION.match(found)
    assert match
    kind, text = match.group(3), "\n".join(inner)
    scatters = kind == "all-reduce" and "all-reduce-scatter" in line + text
    collective = _collective(kind, match.group(2), found, devices)
    if scatters:  # libtpu writes a reduce-scatter as an all-reduce of which each chip keeps a slice
        collective = Collective("reduce-scatter", collective.bytes / 2)
    if " async-start(" in line:
        return Event("start", own, collective)
    channel = re.search(r"channel_id=(\d+)", found)
    key = f"channel {channel.group(1)}" if channel else own
    if '"AsyncCollectiveStart"' in text:
        return Event("start", key, collective)
    if '"AsyncCollectiveDone"' in text:
        return Event("done", key, None)
    return None if "async_collective_fusion_config" in found else Event("now", own, collective)


def _operand(line: str) -> str:
    match = _INSTRUCTION.match(line)
    return match.group(4) if match else ""


def _defining(name: str, lines: list[str]) -> str | None:
    return next((x for x in lines if (m := _INSTRUCTION.match(x)) and m.group(1) == name), None)


def _inside(name: str, computations: Computations) -> list[str]:
    """All lines of a computation and, recursively, of those that it calls."""
    lines = []
    for line in computations.get(name, ()):
        lines.append(line)
        for other in re.findall(r"calls=%?([\w.\-]+)", line):
            lines += _inside(other, computations)
    return lines


def _collective(kind: str, result: str, line: str, devices: int) -> Collective:
    n = group_size(line, devices)
    size = array_bytes(result)
    shares = {
        "all-gather": (n - 1) / n,
        "all-reduce": 2 * (n - 1) / n,
        "reduce-scatter": n - 1,  # of the result, which is 1/n of the operand
        "all-to-all": (n - 1) / n,
        "collective-permute": 1.0,
    }
    return Collective(kind, shares[kind] * size)


def array_bytes(text: str) -> int:
    """Bytes of all arrays in an HLO type such as "(bf16[8,128]{1,0}, f32[])"."""
    total = 0
    for dtype, shape in re.findall(r"\b([a-z]+\d*[a-z\d]*)\[([\d,]*)\]", text):
        bits = re.search(r"\d+", dtype)
        total += math.prod(int(x) for x in shape.split(",") if x) * (int(bits.group()) if bits else 8)
    return total // 8


def group_size(line: str, devices: int) -> int:
    """The number of chips in one group of a collective; all of the program's if it names no groups.

    Groups are lists ({{0,1},{2,3}}), shapes ([2,4]<=[8]T(1,0)), or axes of a mesh (mesh['a'=2,'b'=4] {'b'}) or parts
    of axes ('b':(2)2).
    """
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
        return listed.group(1).count(",") + 1
    if counted := re.search(r"replica_groups=\[\d+,(\d+)\]<=", line):
        return int(counted.group(1))
    if meshed := re.search(r"replica_groups=mesh\[(.*?)\][^{]*\{([^}]*)\}", line):
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", meshed.group(1))}
        axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", meshed.group(2))
        return math.prod(int(part) if part else sizes[name] for name, part in axes)
    return devices
