"""Where a training step of the bundled model spends its time on this CPU, and how close that is to the CPU's peak.

    python benchmarks/cpu_training.py [--stage -1] [--batch 4] [--pool data/pool] [--repetitions 5] [--json FILE]

Times parts of one step of `configs/bundled.py`, in float32 and of few images, each compiled by itself, and the whole
step. The peak is that of the fastest of some large matrix products in the same run. --pool adds the time to make a
step's images.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from tyro.conf import arg

sys.path.insert(0, str(Path(__file__).parent.parent))

from configs.bundled import get_config
from sam_jax.config import CompositeDataConfig, StageConfig, TrainConfig, for_stage
from sam_jax.models.sam import Sam, init_variables
from sam_jax.training.batches import make_batches
from sam_jax.training.optimizer import make_optimizer
from sam_jax.training.step import create_state, forward_with_loss, image_embeddings, train_step

PEAK_SIDE = 2048  # of the matrices whose product measures the peak


def median_seconds(run: Callable[[], Any], repetitions: int) -> float:
    """Median time of a call, after a warm-up call."""
    seconds = []
    for _ in range(repetitions + 1):
        start = time.perf_counter()
        jax.block_until_ready(run())
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


def matmul_peak(repetitions: int) -> float:
    """GFLOP/s of the fastest of some products of large float32 matrices."""
    matrix = jnp.ones((PEAK_SIDE, PEAK_SIDE))
    product = jax.jit(lambda x: x @ x)
    seconds = min(median_seconds(lambda: product(matrix), 1) for _ in range(repetitions + 3))
    return 2 * PEAK_SIDE**3 / seconds / 1e9


def random_batch(stage: StageConfig) -> dict[str, jax.Array]:
    """Noise as images and discs as masks: their content does not affect the time."""
    rng, size, count = np.random.default_rng(0), stage.image_size, stage.masks_per_image
    side = size // 4
    y, x = np.mgrid[:side, :side]
    places = rng.uniform(0.3, 0.7, (stage.batch_size, count, 2, 1, 1)) * side
    masks = (x - places[:, :, 0]) ** 2 + (y - places[:, :, 1]) ** 2 < (side / 6) ** 2
    return {
        "image": jnp.asarray(rng.integers(0, 256, (stage.batch_size, size, size, 3), np.uint8)),
        "input_size": jnp.full((stage.batch_size, 2), size, jnp.int32),
        "masks": jnp.asarray(masks),
        "mask_valid": jnp.ones(masks.shape[:2], bool),
    }


def parts(config: TrainConfig, stage: StageConfig) -> dict[str, tuple[Callable[..., Any], tuple[Any, ...]]]:
    """The step and its parts: functions to compile, and their arguments."""
    model, key, batch = Sam(config.sam), jax.random.key(0), random_batch(stage)
    variables = init_variables(model, key)
    params, constants = variables["params"], variables["constants"]
    optimizer = make_optimizer(config.optim, config.sam, config.num_steps)
    state = create_state(variables, optimizer)

    def encode(params: Any) -> jax.Array:
        return image_embeddings(model, {"params": params, "constants": constants}, batch)

    def decode(params: Any, embeddings: jax.Array) -> jax.Array:
        known = {"image_embeddings": embeddings, "masks": batch["masks"], "mask_valid": batch["mask_valid"]}
        return forward_with_loss(model, config, params, constants, known, key)[0]

    return {
        "encoder, forward": (encode, (params,)),
        "encoder, forward and backward": (jax.grad(lambda p: jnp.square(encode(p)).sum()), (params,)),
        "interactions, forward and backward": (jax.grad(decode, (0, 1)), (params, jax.jit(encode)(params))),
        "optimizer": (lambda g, s: optimizer.update(g, s, params), (params, state.opt_state)),
        "whole step": (partial(train_step, model, config, optimizer), (state, batch, key)),
    }


def measure(config: TrainConfig, stage: StageConfig, repetitions: int) -> list[dict[str, Any]]:
    """A row of figures for each part."""
    rows = []
    for name, (function, arguments) in parts(config, stage).items():
        program = jax.jit(function).lower(*arguments).compile()
        gflop = program.cost_analysis()["flops"] / 1e9
        seconds = median_seconds(partial(program, *arguments), repetitions)
        rows.append({"part": name, "seconds": seconds, "gflop": gflop, "gflop_per_s": gflop / seconds})
    return rows


def data_seconds(config: TrainConfig, stage: StageConfig, pool: str, repetitions: int) -> float:
    """Seconds to make one batch of composites with nothing else running."""
    data = config.data
    assert isinstance(data, CompositeDataConfig)
    fresh = dataclasses.replace(stage, num_examples=None)
    batches = make_batches(dataclasses.replace(data, pool=pool, reuse=1, num_workers=0), fresh, config.seed, 0)
    next(batches)
    start = time.perf_counter()
    for _ in range(4 * repetitions):  # more than are read ahead
        next(batches)
    return (time.perf_counter() - start) / (4 * repetitions)


@dataclasses.dataclass(frozen=True)
class Options:
    """The command line."""

    stage: Annotated[int, arg(help="index of the recipe's stage; -1 is the last")] = -1
    batch: Annotated[int, arg(help="images in a step; the recipe has more, for an accelerator")] = 4
    pool: Annotated[str | None, arg(help="a pool of cut-outs, to measure the time to make examples too")] = None
    repetitions: Annotated[int, arg(help="timed repetitions")] = 5
    json: Annotated[Path | None, arg(help="also write the figures there")] = None


def main() -> None:
    """The command line; see the module's docstring."""
    args = tyro.cli(Options, description=__doc__)
    recipe = get_config()
    recipe = dataclasses.replace(recipe, sam=dataclasses.replace(recipe.sam, dtype="float32"))
    stage = dataclasses.replace(recipe.stages[args.stage], batch_size=args.batch)
    config = for_stage(recipe, stage)
    peak = matmul_peak(args.repetitions)
    rows = measure(config, stage, args.repetitions)
    print(f"{stage.batch_size} images of {stage.image_size} px, {stage.masks_per_image} masks each")
    print(f"peak of matrix products: {peak:.0f} GFLOP/s\n")
    print("| part | s | GFLOP | GFLOP/s | of peak |\n|---|---|---|---|---|")
    for row in rows:
        row["of_peak"] = row["gflop_per_s"] / peak
        print("| {part} | {seconds:.3f} | {gflop:.1f} | {gflop_per_s:.0f} | {of_peak:.0%} |".format(**row))
    if args.pool:
        print(f"| examples | {data_seconds(config, stage, args.pool, args.repetitions):.3f} | | | |")
    if args.json:
        args.json.write_text(json.dumps({"peak_gflop_per_s": peak, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
