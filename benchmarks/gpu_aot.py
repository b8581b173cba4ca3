"""What XLA's GPU compiler makes of the library's programs, without a GPU: memory, work of compiling, kernels.

    pip install "jax[cuda13]" && python benchmarks/gpu_aot.py encoder --size b l h --batch 1 8
    python benchmarks/gpu_aot.py encoder --size b h --attention triton --chip h100 a100
    python benchmarks/gpu_aot.py encoder --size h --scan
    python benchmarks/gpu_aot.py kernels --size b h --attention triton xla
    python benchmarks/gpu_aot.py decoder everything --json gpu.json

The programs are those of tpu_aot.py; nothing runs, and there is no estimate of time. Memory is what the compiler
allocates. Without a GPU it does not try out algorithms, which it does on a real one: there compiling takes longer, and
products may take more workspace. Seconds of compiling are those of all cores together, lowering left out.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks import tpu_aot  # sets JAX_PLATFORMS=cpu

# isort: split
import jax
import tyro
from jax.experimental import topologies
from tyro.conf import Positional, arg

Kind = Literal["encoder", "blocks", "kernels", "decoder", "edges", "everything", "video"]
KERNEL = "__gpu$xla.gpu.triton"
GIB = 2**30
# Properties that the compiler asks for, by NVIDIA's data sheets and CUDA's tables of compute capabilities:
# multiprocessors, units for float32 in each, bytes of shared memory (of each, of a block), of L2, of memory, bytes/s,
# GHz, capability.
CHIPS = {
    "h100": (132, 128, 233472, 232448, 52428800, 84929347584, 3352320000000, 1.98, (9, 0)),
    "a100": (108, 64, 167936, 166912, 41943040, 84987740160, 2039000000000, 1.41, (8, 0)),
}


@dataclasses.dataclass(frozen=True)
class Options:
    """The command line."""

    program: Annotated[Positional[tuple[Kind, ...]], arg(metavar="PROGRAM", help="what to compile")]
    size: Annotated[tuple[Literal["b", "l", "h"], ...], arg(help="size of the ViT")] = ("b",)
    batch: Annotated[tuple[int, ...], arg(help="images")] = (1,)
    prompts: Annotated[int, arg(help="prompts per image, for the decoder")] = 64
    attention: Annotated[tuple[Literal["auto", "xla", "triton"], ...], arg(help="see ImageEncoderConfig")] = ("auto",)
    scan: Annotated[bool, arg(help="see ImageEncoderConfig")] = False
    dtype: Annotated[tuple[Literal["float32", "bfloat16"], ...], arg(help="compute type")] = ("bfloat16",)
    chip: Annotated[tuple[Literal["h100", "a100"], ...], arg(help="the GPU to compile for")] = ("h100",)
    json: Annotated[Path | None, arg(help="also write the figures there")] = None


COLUMNS = {
    "program": "{program}",
    "chip": "{chip}",
    "dtype": "{dtype}",
    "Triton kernels": "{kernels}",
    "arguments GiB": "{arguments_gib:.2f}",
    "temporaries GiB": "{temporaries_gib:.2f}",
    "all GiB": "{all_gib:.2f}",
    "compile core s": "{compile_core_s:.0f}",
}


def main() -> int:
    """Prints one line per compilation, as Markdown."""
    args = tyro.cli(Options, description=__doc__)
    rows: list[dict[str, Any]] = []
    try:
        devices = {name: find_device(name) for name in args.chip}
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 2
    print("What XLA's GPU compiler allocates; nothing ran.\n", flush=True)
    print("| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS), sep="\n", flush=True)
    for chip, program, dtype in chosen(args):
        rows.append({"chip": chip, "dtype": dtype} | compile_program(program, devices[chip]))
        print("| " + " | ".join(cell.format(**rows[-1]) for cell in COLUMNS.values()) + " |", flush=True)
        if args.json:
            args.json.write_text(json.dumps(rows, indent=2) + "\n")
    return 0


def chosen(args: Options) -> Iterator[tuple[str, tpu_aot.Program, str]]:
    """(chip, program, dtype) of all that was asked for."""
    asked = (args.chip, args.program, args.size, args.batch, args.attention, args.dtype)
    for chip, kind, size, batch, attention, dtype in itertools.product(*asked):
        how = dataclasses.replace(args, batch=batch, attention=attention, dtype=dtype)
        for program in tpu_aot.PROGRAMS[kind](size, how):
            yield chip, program, dtype


def find_device(name: str) -> Any:
    """A device of a kind of GPU to compile for.

    Raises:
      RuntimeError: JAX's plugin for CUDA is missing.
    """
    cores, units, shared, shared_block, cache, memory, bandwidth, clock, (major, minor) = CHIPS[name]
    target = f"""
      gpu_device_info {{
        threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
        shared_memory_per_block: 49152 shared_memory_per_core: {shared} shared_memory_per_block_optin: {shared_block}
        core_count: {cores} fpus_per_core: {units} clock_rate_ghz: {clock}
        block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
        registers_per_core_limit: 65536 registers_per_block_limit: 65536
        memory_bandwidth: {bandwidth} l2_cache_size: {cache} device_memory_size: {memory}
        cuda_compute_capability {{ major: {major} minor: {minor} }}
      }}
      runtime_version {{ major: 13 }} dnn_version_info {{ major: 9 minor: 12 }}
      platform_name: "CUDA" device_description_str: "{name}"
    """
    try:
        topology = topologies.get_topology_desc(name, "cuda", target_config=target, topology="1x1x1")
    except NotImplementedError:
        raise RuntimeError('JAX has no compiler for GPUs here: pip install "jax[cuda13]" (no GPU is needed)') from None
    return topology.devices[0]


def compile_program(program: tpu_aot.Program, device: Any) -> dict[str, Any]:
    """Compiles a program for a device; returns a row of figures."""
    where = jax.sharding.SingleDeviceSharding(device)
    arguments = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), program.arguments)
    lowered = jax.jit(program.function).lower(*arguments)
    start = time.process_time()
    compiled = lowered.compile()
    seconds = time.process_time() - start
    memory = compiled.memory_analysis()
    sizes = (memory.argument_size_in_bytes, memory.temp_size_in_bytes, memory.output_size_in_bytes)
    return {
        "program": program.name,
        "kernels": compiled.as_text().count(f'custom_call_target="{KERNEL}"'),
        "arguments_gib": sizes[0] / GIB,
        "temporaries_gib": sizes[1] / GIB,
        "all_gib": sum(sizes) / GIB,
        "compile_core_s": seconds,
    }


if __name__ == "__main__":
    sys.exit(main())
