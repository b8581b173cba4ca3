"""What a dry run compiles and counts is what the loop runs."""

import dataclasses

import numpy as np
import pytest

from sam_jax.config import FinetuneConfig, InteractionConfig, StageConfig, TrainConfig, for_stage
from sam_jax.training.dry_run import _abstract_batch, useful_flops
from tests.tiny import SMALLEST

STAGE = StageConfig(80, 1, 2, num_steps=1)
CONFIG = TrainConfig(sam=SMALLEST, stages=(STAGE,), interaction=InteractionConfig(num_points=0, num_mask_only_steps=0))
FROZEN = FinetuneConfig(frozen=("image_encoder/.*",))


def flops(**changes):
    return useful_flops(dataclasses.replace(CONFIG, **changes), STAGE)


def test_a_frozen_encoder_has_no_backward_pass():
    """Of the encoder: three forward passes' worth, one where it is frozen, none where its embeddings are kept."""
    everything, frozen = flops(), flops(finetune=FROZEN)
    kept = flops(finetune=dataclasses.replace(FROZEN, embedding_cache="somewhere"))
    encoder = frozen - kept
    patches = 2 * 5 * 5 * (16 * 16 * 3) * 32  # whose input, the image, needs no gradient
    assert encoder > 0
    assert everything == pytest.approx(kept + 3 * encoder - patches, rel=0.01)
    assert kept < frozen < flops(finetune=FinetuneConfig(lora_rank=2)) < everything


def test_a_stage_counts_its_own_interactions():
    stage = dataclasses.replace(STAGE, num_points=3)
    assert useful_flops(for_stage(CONFIG, stage), stage) > 1.5 * flops()


def test_batches_hold_embeddings_where_a_cache_has_them():
    assert "image_embeddings" not in _abstract_batch(CONFIG, STAGE, None)
    config = dataclasses.replace(CONFIG, finetune=dataclasses.replace(FROZEN, embedding_cache="somewhere"))
    batch = _abstract_batch(config, STAGE, None)
    assert "image" not in batch
    assert (batch["image_embeddings"].shape, batch["image_embeddings"].dtype) == ((1, 5, 5, 32), np.float16)
