"""Runs the programs of tpu_aot.py on this machine's accelerator: measured times beside the compiler's estimates.

    pip install -e ".[tpu]" && python benchmarks/tpu_run.py encoder decoder everything kernels --size b l h
    python benchmarks/tpu_run.py everything --size h --trace traces/h      # and a trace for xprof or TensorBoard

Use it to confirm the tables of docs/performance.md on hardware. Arguments are random; the first run is not timed. The
estimate is of the same compiled program, if the device is a TPU of a known kind; otherwise the column is empty. Times
are medians over --repetitions calls, each of them synchronous.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Annotated, Any

# tpu_aot.py, imported below, would set this to "cpu".
os.environ.setdefault("JAX_PLATFORMS", "")

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from tyro.conf import arg

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks import tpu_aot
from sam_jax.estimates import tpu as tpu_estimates

HEADER = "| program | device | measured ms | fastest | est. ms | measured / est. | useful TFLOP/s |"
# JAX's names of the chips of `tpu_estimates.CHIPS`.
KINDS = {
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
}


@dataclasses.dataclass(frozen=True)
class Options(tpu_aot.ProgramOptions):
    """The command line."""

    repetitions: Annotated[int, arg(help="timed repetitions")] = 20
    trace: Annotated[Path | None, arg(help="folder for a profile of the timed calls")] = None


def main() -> None:
    """Prints one line per program, as Markdown."""
    args = tyro.cli(Options, description=__doc__)
    device = jax.devices()[0]
    print(f"jax {jax.__version__}, {device.device_kind}\n", HEADER, "|" + "---|" * 7, sep="\n", flush=True)
    rows = []
    with jax.profiler.trace(str(args.trace)) if args.trace else contextlib.nullcontext():
        for kind in args.program:
            for size in args.size:
                for program in tpu_aot.PROGRAMS[kind](size, args):
                    rows.append(run(program, device, args.repetitions))
                    print(_line(rows[-1]), flush=True)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n")


def run(program: tpu_aot.Program, device: Any, repetitions: int) -> dict[str, Any]:
    """Times a program on a device; returns a row of figures, times in milliseconds."""
    rng = np.random.default_rng(0)
    arguments = jax.device_put(jax.tree.map(lambda shape: _random(rng, shape), program.arguments), device)
    compiled = jax.jit(program.function).lower(*arguments).compile()
    jax.block_until_ready(compiled(*arguments))
    times = []
    for _ in range(repetitions):
        start = time.perf_counter()
        jax.block_until_ready(compiled(*arguments))
        times.append(1e3 * (time.perf_counter() - start))
    chip = tpu_estimates.CHIPS.get(KINDS.get(device.device_kind, ""))
    estimate = None
    if chip is not None:
        estimate = 1e3 * tpu_estimates.estimate_cycles(compiled.as_text(), chip).cycles / chip.clock
    measured = statistics.median(times)
    return {
        "program": program.name,
        "device": device.device_kind,
        "ms": measured,
        "fastest_ms": min(times),
        "estimated_ms": estimate,
        "useful_tflops": program.useful_flops / measured / 1e9,
    }


def _random(rng: np.random.Generator, shape: Any) -> jax.Array:
    """Floats of order 0.02, which keep activations finite; zeros for integers, which are indices."""
    if jnp.issubdtype(shape.dtype, jnp.floating):
        return jnp.asarray(0.02 * rng.standard_normal(shape.shape), shape.dtype)
    return jnp.zeros(shape.shape, shape.dtype)


def _line(row: dict[str, Any]) -> str:
    estimate = row["estimated_ms"]
    beside = f"{estimate:.2f} | {row['ms'] / estimate:.2f}" if estimate else "- | -"
    return (
        f"| {row['program']} | {row['device']} | {row['ms']:.2f} | {row['fastest_ms']:.2f} | {beside} | "
        f"{row['useful_tflops']:.1f} |"
    )


if __name__ == "__main__":
    main()
