"""What a dry run compiles and counts is what the loop runs."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import tpu_training
from sam_jax.config import FinetuneConfig, InteractionConfig, StageConfig, TrainConfig, for_stage
from sam_jax.estimates import tpu as tpu_estimates
from sam_jax.training import dry_run
from sam_jax.training.dry_run import useful_flops
from sam_jax.training.placement import abstract_batch, compiler_options
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
    assert "image_embeddings" not in abstract_batch(CONFIG, STAGE, None)
    config = dataclasses.replace(CONFIG, finetune=dataclasses.replace(FROZEN, embedding_cache="somewhere"))
    batch = abstract_batch(config, STAGE, None)
    assert "image" not in batch
    assert (batch["image_embeddings"].shape, batch["image_embeddings"].dtype) == ((1, 5, 5, 32), np.float16)


@pytest.mark.parametrize(
    ("platform", "fsdp", "options"),
    [
        ("cpu", 4, {"xla_backend_optimization_level": 1}),
        ("tpu", 4, {"xla_tpu_enable_async_collective_fusion_multiple_steps": "false"}),
        ("tpu", 1, None),
        ("gpu", 4, None),
    ],
)
def test_options_of_the_compiler_belong_to_devices(platform, fsdp, options):
    devices = np.array([[SimpleNamespace(platform=platform)] * fsdp])
    assert compiler_options(SimpleNamespace(devices=devices, shape={"data": 1, "fsdp": fsdp}), 1) == options


def test_communication_is_printed_beside_the_step_that_it_lengthens(monkeypatch, capsys):
    estimate = tpu_estimates.Estimate(1.0, 1.0, 1.0, 2.0, 1.0, 1.0, 0.5, 0.0, 0, 0.04, 0.0123, {"all-gather": 3}, 9.0)
    found = dry_run.StepEstimate("v5e:4x4", 16, estimate, 16.0, 1e12, 0.1)
    monkeypatch.setattr(dry_run, "estimate_step", lambda *_: found)
    monkeypatch.setattr(tpu_training, "estimate_step", lambda *_: found)
    text = dry_run.describe(CONFIG, "v5e:4x4")
    assert "  step                 500 ms estimated\n" in text
    assert "  communication         40 ms, 12 of the step's where nothing hides it\n" in text
    (row,) = tpu_training.print_rows([("b", "v5e:4x4", 1)], [64])
    assert (row["exposed_ms"], row["communication_ms"]) == (12.3, 40.0)
    header, rule, line = capsys.readouterr().out.splitlines()[-3:]
    assert header.count("|") == rule.count("|") == line.count("|")
    cells = dict(zip(header.split(" | "), line.split(" | "), strict=True))
    assert (cells["est. step ms"], cells["of it comm. ms"], cells["all comm. ms"]) == ("500", "12.3", "40.0")
