"""The initial state of a run, created in shards on its mesh: no device ever holds more than its share."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from sam_jax import sharding
from sam_jax.checkpoint import load_config, load_variables
from sam_jax.config import StageConfig, TrainConfig, network_differences
from sam_jax.models.sam import Sam, init_variables
from sam_jax.ops.random_bits import hash_key
from sam_jax.training.step import TrainState, create_state, image_embeddings


def compiler_options(mesh: Mesh, llvm_level: int) -> dict[str, Any] | None:
    """Options of `jax.jit` for a mesh's devices; None if there are none.

    A program for CPUs is thousands of small loops, and most of its time goes to matrix products, which LLVM does not
    compile. With LLVM's level 1 instead of 3 a training step compiles in five sixths of the time and runs as fast.
    Level 0 halves the compile time but runs slower, which suits a program that runs once.

    The TPU compiler of libtpu 0.0.52 fails with an internal error where it spreads the gathering of sharded parameters
    over several operations and kernels take much of VMEM. Without spreading it hides less: of ViT-B's 3 ms none, and of
    ViT-H's 27 ms (in 16 parts) none in place of half.
    """
    platform = mesh.devices.flat[0].platform
    if platform == "cpu":
        return {"xla_backend_optimization_level": llvm_level}
    if platform == "tpu" and mesh.shape[sharding.AXES[1]] > 1:
        return {"xla_tpu_enable_async_collective_fusion_multiple_steps": "false"}
    return None


def abstract_state(config: TrainConfig, model: Sam, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """The state as `jax.ShapeDtypeStruct`s with shardings; nothing is computed."""
    shapes = jax.eval_shape(partial(_from_seed, config, model, optimizer))
    shardings = sharding.tree_shardings(mesh, shapes)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)


def abstract_batch(
    config: TrainConfig, stage: StageConfig, where: jax.sharding.NamedSharding | None
) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of a stage's batches, placed; with a cache of embeddings, those in the place of images."""
    b, k, s = stage.batch_size, stage.masks_per_image, stage.image_size
    grid = s // stage.mask_stride
    shapes = {
        "image": ((b, s, s, 3), np.uint8),
        "input_size": ((b, 2), np.int32),
        "masks": ((b, k, grid, grid), np.bool_),
        "mask_valid": ((b, k), np.bool_),
    }
    if config.sam.text_embed_dim:
        shapes["text_embeddings"] = ((b, k, config.sam.text_embed_dim), np.float32)
    batch = {name: jax.ShapeDtypeStruct(shape, dtype, sharding=where) for name, (shape, dtype) in shapes.items()}
    if config.finetune.embedding_cache is not None:
        model = Sam(config.sam)
        variables = jax.eval_shape(partial(init_variables, model), jax.random.key(0))
        seen = {name: batch.pop(name) if name == "image" else batch[name] for name in ("image", "input_size")}
        known = jax.eval_shape(partial(image_embeddings, model), variables, seen)
        batch["image_embeddings"] = jax.ShapeDtypeStruct(known.shape, np.float16, sharding=where)
    return batch


def initial_state(config: TrainConfig, model: Sam, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """The state before the first step, from `config.init_from` or from the seed; its values do not depend on the mesh.

    Raises:
      ValueError: `init_from` holds another network.
    """
    shardings = jax.tree.map(lambda x: x.sharding, abstract_state(config, model, optimizer, mesh))
    if config.init_from is None:
        create = jax.jit(
            partial(_from_seed, config, model, optimizer),
            out_shardings=shardings,
            compiler_options=compiler_options(mesh, 0),
        )
        state: TrainState = create()
        return state
    stored = load_config(config.init_from)
    # A network without text prompts may learn them: their projection is fresh, then.
    learns_texts = bool(config.sam.text_embed_dim and not stored.text_embed_dim)
    wanted = dataclasses.replace(config.sam, text_embed_dim=0) if learns_texts else config.sam
    if differences := network_differences(stored, wanted):
        raise ValueError(
            f"init_from {config.init_from} is not the network that this run trains: it has {'; '.join(differences)}; "
            "change --sam, or give weights that fit"
        )
    shapes = jax.eval_shape(partial(init_variables, Sam(wanted)), jax.random.key(0))
    variables = load_variables(config.init_from, shapes, sharding.tree_shardings(mesh, shapes))

    def place(variables: dict[str, Any]) -> TrainState:
        if learns_texts:
            fresh = init_variables(model, hash_key(config.seed))["params"]["prompt_encoder"]["text_projection"]
            params = variables["params"]
            encoder = params["prompt_encoder"] | {"text_projection": fresh}
            variables = variables | {"params": params | {"prompt_encoder": encoder}}
        return create_state(variables, optimizer, config.finetune, jax.random.key(config.seed))

    loaded: TrainState = jax.jit(place, out_shardings=shardings)(variables)
    return loaded


def _from_seed(config: TrainConfig, model: Sam, optimizer: optax.GradientTransformation) -> TrainState:
    variables = init_variables(model, hash_key(config.seed))
    return create_state(variables, optimizer, config.finetune, jax.random.key(config.seed))
