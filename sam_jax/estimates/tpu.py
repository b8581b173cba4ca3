"""Memory, time and collectives of a program on a TPU, from the TPU compiler, without a TPU.

libtpu compiles for a named topology on any machine. Memory is what the compiler allocates. Time is an estimate: the sum
of the cycles that the compiler states for each instruction of the optimised program, times the trip counts of loops. It
states none for kernels, which `kernel_cycles` estimates, and none for collectives, which `estimates.communication`
estimates and which count as far as the schedule does not hide them. Nothing is run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from jax.experimental import topologies
from jax.experimental.compilation_cache import compilation_cache

from sam_jax.estimates import communication as tpu_communication

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """Properties of a TPU chip.

    Attributes:
      flops: peak bfloat16 FLOP/s; hbm: usable GiB; clock: Hz; bandwidth: HBM bytes/s.
      interconnect: bytes/s that the chip sends within its slice over all its links together.
      smallest: the smallest topology that libtpu knows.
      schedules: (regular expression, factor) for names of kernels: the cycles of the compiler's final schedule (bundles
        per grid step x grid steps) over the cycles of the stated FLOPs at peak. The first match counts; without one, 1.
    """

    flops: float
    hbm: float
    clock: float
    bandwidth: float
    interconnect: float
    smallest: str
    schedules: tuple[tuple[str, float], ...] = ()


# Kernels of ops/attention_tpu.py: with windows, the vector unit is the bottleneck, not the matrix unit, and heads of 80
# channels also need to be moved. Those of ops/mask_decoder_tpu.py normalise and activate more than they multiply. int8
# has twice the peak. From the dumps of libtpu 0.0.52 for the sizes of ViT-B, L and H, for 64 prompts with 7 tokens, or
# in training 16 (128 rows) with dropout, and for masks of an image of 1500 x 2250; none for v5p.
_V5E_SCHEDULES = (
    (r"attention_14x14_\d+x80_backward", 2.7),
    (r"attention_14x14_\d+x80", 3.2),
    (r"attention_14x14_\d+x64", 2.2),
    (r"attention_64x64_\d+x80", 1.08),
    (r"attention_64x64_\d+x64_backward", 1.07),
    (r"read_pixels_\d+x\d+x\d+_backward", 1.1),
    (r"read_pixels_", 1.4),
    (r"update_pixels_128x\d+x\d+_backward", 2.4),
    (r"update_pixels_\d+x\d+x\d+_backward", 4.9),
    (r"update_pixels_128x", 3.3),
    (r"update_pixels_", 4.1),
    (r"upscale_\d+x16x\d+_backward", 1.08),
    (r"upscale_", 1.2),
    (r"mask_bits_", 1.04),
    (r"norm_dense_196x", 1.09),
    (r"residual_int8_mlp_\d+x1280", 0.67),
    (r"residual_int8_mlp_\d+x1024", 0.74),
    (r"residual_int8_mlp_\d+x768", 0.82),
)
_V6E_SCHEDULES = (
    (r"attention_14x14_\d+x80", 10.5),
    (r"attention_14x14_\d+x64", 7.2),
    (r"attention_64x64_", 2.3),
    (r"read_pixels_\d+x\d+x\d+_backward", 1.8),
    (r"read_pixels_", 3.9),
    (r"update_pixels_128x\d+x\d+_backward", 7.1),
    (r"update_pixels_\d+x\d+x\d+_backward", 16.2),
    (r"update_pixels_128x", 11.3),
    (r"update_pixels_", 13.5),
    (r"upscale_\d+x16x\d+_backward", 3.1),
    (r"upscale_", 4.4),
    (r"mask_bits_", 2.8),
    (r"residual_mlp_\d+x768", 2.1),
    (r"residual_mlp_", 1.6),
    (r"norm_dense_\d+x768", 1.75),
    (r"norm_dense_", 1.52),
    (r"residual_int8_mlp_\d+x768", 2.3),
    (r"residual_int8_mlp_", 1.55),
)
# Interconnects: Google Cloud's pages "TPU v5e", "TPU v5p" and "TPU v6e" (docs.cloud.google.com/tpu/docs) state 400,
# 1200 and 800 GB/s per chip for both directions together, of which one direction has half. Older versions of these
# pages state 1600, 4800 and 3584 Gbit/s.
CHIPS = {
    "v5e": Chip(197e12, 15.75, 1.5e9, 819e9, 200e9, "v5e:2x2", _V5E_SCHEDULES),
    "v5p": Chip(459e12, 95.0, 1.75e9, 2765e9, 600e9, "v5p:2x2x1"),
    "v6e": Chip(918e12, 31.25, 1.75e9, 1640e9, 400e9, "v6e:2x2", _V6E_SCHEDULES),
}
# XLA turns a plain softmax(q k^T) v into its own flash kernel, and states the FLOPs of it without the padding to 128
# lanes. The final schedule for a global block of ViT-B on v5e (2438 bundles x 768 grid steps) is longer by this factor.
XLA_FLASH_FACTOR = 2.4


class TopologyError(ValueError):
    """Programs cannot be compiled for a topology on this machine."""


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Per chip: memory in GiB, estimated seconds, and the number of collectives by kind, with all iterations of loops.

    `seconds` includes `kernel_seconds`, the time of `kernels` calls of Pallas's and XLA's own kernels, and
    `exposed_seconds`, the part of `communication_seconds` in which nothing else runs. `flops` and `bytes` are the
    compiler's for the optimised program, with the body of a loop counted once.
    """

    arguments: float
    outputs: float
    temporaries: float
    peak: float
    flops: float
    bytes: float
    seconds: float
    kernel_seconds: float
    kernels: int
    communication_seconds: float
    exposed_seconds: float
    collectives: dict[str, int]
    compile_seconds: float


def topology_devices(name: str) -> tuple[Chip, list[Any]]:
    """The chip and the devices of a topology such as "v5e:16x16"; "v5e:1" is a single chip.

    Raises:
      TopologyError: libtpu is missing, or it does not know the topology.
    """
    kind, _, grid = name.partition(":")
    if kind not in CHIPS:
        raise TopologyError(f"topology {name!r} is not known; expected one of {', '.join(CHIPS)} and a grid: v5e:4x4")
    # By default, libtpu queries the cloud's metadata server, which fails here, and cannot be loaded by two processes.
    settings = {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    settings |= {"TPU_ACCELERATOR_TYPE": "v5litepod-4", "TPU_WORKER_HOSTNAMES": "localhost"}
    for variable, value in settings.items():
        os.environ.setdefault(variable, value)
    try:
        known = CHIPS[kind].smallest if grid == "1" else name
        described = topologies.get_topology_desc(topology_name=known, platform="tpu")
    except Exception as error:  # jaxlib raises its own runtime errors, and ImportError without libtpu
        first = str(error).strip().splitlines()[0][:200]
        raise TopologyError(
            f"cannot compile for {name!r} ({first}); is libtpu installed (pip install libtpu)?"
        ) from error
    return CHIPS[kind], list(described.devices)[: 1 if grid == "1" else None]


def compile_for(chip: Chip, function: Any, *arguments: Any) -> Estimate:
    """Compiles a jitted function for `jax.ShapeDtypeStruct`s with shardings on a topology's devices."""
    started = time.perf_counter()
    lowered = function.lower(*arguments)
    with _no_compilation_cache():
        compiled = lowered.compile()
    elapsed = time.perf_counter() - started
    memory = compiled.memory_analysis()
    cost = estimate_cycles(compiled.as_text(), chip)
    costs = compiled.cost_analysis()
    # Outputs can share the memory of donated arguments: aliased bytes count once.
    peak = (
        memory.argument_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.generated_code_size_in_bytes
    )
    return Estimate(
        arguments=memory.argument_size_in_bytes / GIB,
        outputs=memory.output_size_in_bytes / GIB,
        temporaries=memory.temp_size_in_bytes / GIB,
        peak=peak / GIB,
        flops=costs.get("flops", 0.0),
        bytes=costs.get("bytes accessed", 0.0),
        seconds=cost.cycles / chip.clock,
        kernel_seconds=cost.kernel_cycles / chip.clock,
        kernels=cost.kernels,
        communication_seconds=cost.communication / chip.clock,
        exposed_seconds=cost.exposed / chip.clock,
        collectives=dict(sorted(cost.collectives.items())),
        compile_seconds=elapsed,
    )


@contextlib.contextmanager
def _no_compilation_cache() -> Iterator[None]:
    """Disables the cache: a program for absent chips can be written to it, but not read back."""
    enabled = jax.config.jax_enable_compilation_cache  # type: ignore[attr-defined]
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # the cache reads the setting only once
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", enabled)
        compilation_cache.reset_cache()


@dataclasses.dataclass
class Cost:
    """Cycles of a program or a part of it, with all iterations of loops.

    `cycles` includes `kernel_cycles` and `exposed`, the part of `communication` in which nothing else runs.
    """

    cycles: float = 0.0
    kernels: int = 0
    kernel_cycles: int = 0
    communication: float = 0.0
    exposed: float = 0.0
    collectives: Counter[str] = dataclasses.field(default_factory=Counter)

    def add(self, other: Cost, times: int = 1) -> None:
        """Adds another part, which runs `times` times."""
        self.cycles += times * other.cycles
        self.kernels += times * other.kernels
        self.kernel_cycles += times * other.kernel_cycles
        self.communication += times * other.communication
        self.exposed += times * other.exposed
        self.collectives += Counter({kind: times * n for kind, n in other.collectives.items()})


def estimate_cycles(hlo: str, chip: Chip) -> Cost:
    """The cost of an optimised HLO program; loop bodies count once per iteration."""
    computations, entry = _computations(hlo)
    partitions = re.search(r"num_partitions=(\d+)", hlo)
    devices = int(partitions.group(1)) if partitions else 1
    known: dict[str, Cost] = {}

    def cost(name: str) -> Cost:
        if name not in known:
            total, link = Cost(), tpu_communication.Link(chip.clock / chip.interconnect)
            for line in computations.get(name, ()):
                part, called, turns = _instruction(line, computations, chip)
                for other in called:
                    part.add(cost(other), turns)
                total.add(part)
                link.now += part.cycles
                if event := tpu_communication.event(line, name, computations, devices):
                    link.follow(event)
                    total.collectives.update([event.collective.kind] if event.collective else [])
            link.finish()
            total.cycles += link.exposed
            total.exposed += link.exposed
            total.communication += link.total
            known[name] = total
        return known[name]

    return cost(entry)


def _computations(hlo: str) -> tuple[dict[str, list[str]], str]:
    computations: dict[str, list[str]] = {}
    entry = current = ""
    for line in hlo.splitlines():
        if header := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{\s*$", line):
            current = header.group(2)
            computations[current] = []
            entry = current if header.group(1) else entry
        elif line.startswith("}"):
            current = ""
        elif current:
            computations[current].append(line)
    return computations, entry


def kernel_cycles(line: str, chip: Chip) -> int:
    """Cycles of a kernel's call in an optimised HLO program, from its cost estimate; 0 without one.

    The larger of the FLOPs at peak, times the factor of `Chip.schedules` or XLA_FLASH_FACTOR, and the bytes at full
    bandwidth. Kernels of this library state the FLOPs that the matrix unit executes, padding included.
    """
    stated = {kind: int(n) for kind, n in re.findall(r'"(flops|bytes_accessed)":"(\d+)"', line)}
    factor = XLA_FLASH_FACTOR
    if "pallas_call" in line:
        name = line.strip().removeprefix("ROOT ").removeprefix("%")
        factor = next((longer for pattern, longer in chip.schedules if re.match(pattern, name)), 1.0)
    arithmetic = factor * stated.get("flops", 0) / chip.flops
    return round(max(arithmetic, stated.get("bytes_accessed", 0) / chip.bandwidth) * chip.clock)


def _instruction(line: str, computations: dict[str, list[str]], chip: Chip) -> tuple[Cost, list[str], int]:
    """The own cost of one line, without communication; the computations that it calls, and how often."""
    match = re.match(r"\s*(?:ROOT )?%?[\w.\-]+ = .*? ([a-z][\w\-]*)\(", line)
    if not match:
        return Cost(), [], 1
    operation = match.group(1)
    if 'custom_call_target="tpu_custom_call"' in line:
        cycles = kernel_cycles(line, chip)
        return Cost(cycles=cycles, kernels=1, kernel_cycles=cycles), [], 1
    if operation == "while":
        parts = dict(re.findall(r"(body|condition)=%?([\w.\-]+)", line))
        return Cost(), [parts["body"]], _turns(line, parts["condition"], computations)
    called = []
    if operation in ("call", "conditional"):
        called = re.findall(r"(?:to_apply|true_computation|false_computation)=%?([\w.\-]+)", line)
    noted = re.search(r'"estimated_cycles":"(\d+)"', line)
    return Cost(cycles=int(noted.group(1)) if noted else 0), called, 1


def _turns(line: str, condition: str, computations: dict[str, list[str]]) -> int:
    """The trip count of a loop: the known one, or else the constant that its condition compares with."""
    if noted := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', line):
        return int(noted.group(1))
    seen, names = [], [condition]
    while names:
        for inner in computations.get(names.pop(), ()):
            seen += [int(n) for n in re.findall(r"s32\[\][^ ]* constant\((\d+)\)", inner)]
            names += re.findall(r"calls=%?([\w.\-]+)", inner)
    return next((n for n in seen if n > 1), 1)


def matmul_flops(function: Any, *arguments: Any) -> int:
    """FLOPs of all matrix products and convolutions of a function, with all iterations of loops."""
    return _jaxpr_flops(jax.make_jaxpr(function)(*arguments).jaxpr)


def _jaxpr_flops(jaxpr: Any) -> int:
    total = 0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            total += 2 * equation.outvars[0].aval.size * math.prod(shape[axis] for axis in contracted)
        elif name == "conv_general_dilated":
            kernel = equation.invars[1].aval
            outputs = kernel.shape[params["dimension_numbers"].rhs_spec[0]]
            total += 2 * equation.outvars[0].aval.size * kernel.size // outputs
        inner = sum(_jaxpr_flops(sub) for sub in _sub_jaxprs(params))
        total += inner * (params["length"] if name == "scan" else 1)
    return total


def _sub_jaxprs(params: dict[str, Any]) -> list[Any]:
    found: list[Any] = []
    for name, value in params.items():
        values: Sequence[Any] = value if isinstance(value, (tuple, list)) else (value,)
        jaxprs = [getattr(x, "jaxpr", x) for x in values if hasattr(x, "jaxpr") or hasattr(x, "eqns")]
        # Only one branch of a conditional runs; here all do the same work (attention for each platform).
        found += jaxprs[-1:] if name == "branches" else jaxprs
    return found
