"""Compiles a training step for a TPU topology, without a TPU, and estimates its memory and time."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax

from sam_jax import sharding
from sam_jax.config import StageConfig, TrainConfig, for_stage
from sam_jax.estimates import tpu as tpu_estimates
from sam_jax.models.sam import Sam, init_variables
from sam_jax.training.finetune import assemble, split_params
from sam_jax.training.optimizer import make_optimizer
from sam_jax.training.placement import abstract_batch, abstract_state, compiler_options
from sam_jax.training.step import forward_with_loss, train_step


@dataclasses.dataclass(frozen=True)
class StepEstimate:
    """The compiler's estimate of a training step, and the model FLOPs utilisation that follows from it.

    Attributes:
      topology: libtpu's name of it, such as "v5e:16x16".
      chips: their number.
      estimate: memory, time and collectives per chip.
      hbm: usable GiB of memory per chip.
      useful_flops: FLOPs per chip as defined in `estimate_step`.
      mfu: model FLOPs utilisation, 1 for peak bfloat16 FLOP/s.
    """

    topology: str
    chips: int
    estimate: tpu_estimates.Estimate
    hbm: float
    useful_flops: float
    mfu: float


def estimate_step(config: TrainConfig, stage: StageConfig, topology: str) -> StepEstimate:
    """Compiles one stage's step, as the loop runs it.

    Useful FLOPs per chip are those of the matrix products of the forward pass and of the backward pass to the trained
    parameters: with nothing frozen, about three times the forward pass. Recomputation does not count.

    Raises:
      tpu_estimates.TopologyError: the topology cannot be compiled for.
      ValueError: the mesh or the batch does not divide over the topology's chips.
    """
    config = for_stage(config, stage)
    chip, devices = tpu_estimates.topology_devices(topology)
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp, devices)
    sharding.check_batch(mesh, stage.batch_size, config.accumulate)
    model = Sam(config.sam)
    optimizer = make_optimizer(config.optim, config.sam, config.num_steps)
    state = abstract_state(config, model, optimizer, mesh)
    batch = abstract_batch(config, stage, sharding.batch_sharding(mesh))
    key = jax.eval_shape(lambda: jax.random.key(0))
    key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=sharding.replicated(mesh))
    out = jax.tree.map(lambda x: x.sharding, state)
    step = jax.jit(
        partial(train_step, model, config, optimizer),
        donate_argnums=0,
        out_shardings=(out, None),
        compiler_options=compiler_options(mesh, 1),
    )
    estimate = tpu_estimates.compile_for(chip, step, state, batch, key)
    share = dataclasses.replace(stage, batch_size=1)
    useful = stage.batch_size / len(devices) * useful_flops(config, share)
    return StepEstimate(
        topology, len(devices), estimate, chip.hbm, useful, useful / chip.flops / max(estimate.seconds, 1e-9)
    )


def describe(config: TrainConfig, topology: str) -> str:
    """A readable table of every stage's estimate. Raises as `estimate_step`."""
    encoder = config.sam.vit
    mesh = f"fsdp {config.mesh.fsdp}, data {'all the rest' if config.mesh.data == -1 else config.mesh.data}"
    lines = [
        f"{encoder.depth} blocks of width {encoder.embed_dim}, {config.interaction.num_steps} interactions, {mesh}",
        "These are estimates of the TPU compiler; nothing was run.",
    ]
    for stage in config.stages:
        found = estimate_step(config, stage, topology)
        e = found.estimate
        fits = "fits" if e.peak <= found.hbm else "DOES NOT FIT"
        lines += [
            f"{topology} ({found.chips} chips), {stage.image_size} px, batch {stage.batch_size}, "
            f"{stage.masks_per_image} masks per image:",
            f"  HBM per chip     {e.peak:7.2f} GiB of {found.hbm:.2f}: {fits} "
            f"(state and batch {e.arguments:.2f}, temporaries {e.temporaries:.2f})",
            f"  step             {e.seconds * 1e3:7.0f} ms estimated"
            + (f", {e.kernel_seconds * 1e3:.0f} of it in {e.kernels} kernel calls" if e.kernels else ""),
            f"  useful work      {found.useful_flops / 1e12:7.2f} TFLOP per chip, estimated MFU {found.mfu:.1%}",
            f"  communication    {e.communication_seconds * 1e3:7.0f} ms, {e.exposed_seconds * 1e3:.0f} of the step's "
            "where nothing hides it",
            f"  collectives      {', '.join(f'{n} {kind}' for kind, n in e.collectives.items()) or 'none'}",
            f"  compiled in      {e.compile_seconds:7.0f} s",
        ]
    return "\n".join(lines)


def useful_flops(config: TrainConfig, stage: StageConfig) -> int:
    """FLOPs of a step's matrix products: forward through all interactions, and backward to the trained parameters."""
    encoder = dataclasses.replace(config.sam.vit, remat=False)
    config = dataclasses.replace(config, sam=dataclasses.replace(config.sam, image_encoder=encoder))
    model, key = Sam(config.sam), jax.random.key(0)
    variables = jax.eval_shape(partial(init_variables, model), key)
    params, frozen = jax.eval_shape(partial(split_params, config.finetune), variables["params"], key)

    def loss(params: Any, frozen: Any, constants: Any, batch: Any) -> Any:
        whole = assemble(config.finetune, params, frozen)
        return forward_with_loss(model, config, whole, constants, batch, key)

    step = jax.value_and_grad(loss, has_aux=True)
    return tpu_estimates.matmul_flops(step, params, frozen, variables["constants"], abstract_batch(config, stage, None))
