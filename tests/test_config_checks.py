"""Every field of every config refuses what it cannot be, in one line that names the field."""

import dataclasses
import math
import typing

import pytest

from sam_jax import config as configs
from sam_jax.config import FinetuneConfig, LossConfig, SamConfig, StageConfig, TrainConfig
from sam_jax.training.loop import RunOptions

# Bad values of each field beyond those of the wrong type. A new field is stated here, or in FREE.
BAD = {
    "AmgConfig": {
        "points_per_side": [0, -1],
        "points_per_batch": [0],
        "stability_score_offset": [-1.0],
        "box_nms_thresh": [-0.1, 1.1],
        "crop_n_layers": [-1],
        "crop_nms_thresh": [-0.1, 1.1],
        "crop_overlap_ratio": [-0.1, 1.0],
        "crop_n_points_downscale_factor": [0],
        "min_mask_region_area": [-1],
        "output_mode": ["png"],
        "mask_nms_thresh": [-0.1, 1.1],
        "min_mask_area": [-1],
        "max_mask_area": [-1],
        "max_mask_cover": [-0.1, 1.1],
        "skip_full_image": [True],  # without crops
    },
    "ServingConfig": {
        "host": ["", " "],
        "port": [-1, 65536],
        "token": [""],
        "cors": [("",)],
        "max_megabytes": [0.0],
        "max_megapixels": [0.0],
        "cache_megabytes": [0.0],
        "max_requests": [0],
        "max_requests_per_client": [0],
        "max_batch": [0],
        "threads": [0],
        "everything_runs": [0],
        "request_seconds": [0.0],
    },
    "CompositeConfig": {
        "image_size": [0, -4, 6],
        "masks_per_image": [0],
        "mask_stride": [0, 3, 8],
        "length": [0],
        "min_aspect": [0.0, 1.5],
        "max_objects": [1],
        "max_distractors": [-1],
    }
    | {
        name: [-0.1, 1.1]
        for name in (
            *("labelled", "regions", "mosaics", "pseudo_regions", "square", "plain_background", "blurred_background"),
            *(
                "photo_region_object",
                "region_object",
                "model_object",
                "match_colours",
                "feather",
                "shadow",
                "parts",
                "repeat",
                "degrade",
            ),
        )
    },
    "AutomaticConfig": {"max_overlap": [-0.1, 1.1]},
    "AugmentConfig": {"mirror": [-0.1, 1.1], "recolour": [-0.1, 1.1]},
    "CompositeDataConfig": {"pool": ["", " "], "num_workers": [-1], "reuse": [0], "buffer_gib": [0.0, -1.0]},
    "EngineConfig": {"hold_out": [-0.1, 1.0], "lease_seconds": [0.0], "hint_seconds": [0.0, -1.0]},
    "FillConfig": {"confidence": [-0.1, 1.1], "max_overlap": [-0.1, 1.1]},
    "FinetuneConfig": {
        "frozen": [("image_encoder/(",)],
        "lora_rank": [-1],
        "lora_alpha": [0.0, -1.0],
        "embedding_cache": [""],
    },
    "ImageEncoderConfig": {
        "image_size": [0, -16, 1000],
        "patch_size": [0, -16],
        "embed_dim": [0, -1, 100],
        "depth": [0],
        "num_heads": [0, -1, 7],
        "mlp_ratio": [0.0, -1.0],
        "window_size": [0],
        "global_attn_indexes": [(12,), (-1,)],
        "drop_path_rate": [-0.1, 1.0],
        "attention": ["cuda"],
        "token_order": ["rows"],
    },
    "InteractionConfig": {
        "num_points": [-1],
        "num_mask_only_steps": [-1],
        "box_probability": [-0.1, 7.0],
        "box_noise": [-0.1],
        "box_noise_max": [-1.0],
        "text_probability": [-0.1, 1.1],
        "text_alone": [-0.1, 1.1],
    },
    "LossConfig": {
        "focal_weight": [-1.0],
        "dice_weight": [-1.0],
        "iou_weight": [-1.0],
        "focal_alpha": [-0.1, 1.1],
        "focal_gamma": [-1.0],
        "affinity_weight": [-1.0],
    },
    "MaskDecoderConfig": {
        "depth": [0],
        "num_heads": [0],
        "mlp_dim": [0],
        "attention_downsample_rate": [0],
        "dropout_rate": [-0.1, 1.0],
        "num_multimask_outputs": [0],
        "iou_head_depth": [0],
        "iou_head_hidden_dim": [0],
        "kernels": ["cuda", "triton"],
    },
    "MeshConfig": {"data": [0, -2], "fsdp": [0, -1]},
    "OptimConfig": {
        "optimizer": ["sgd"],
        "learning_rate": [-1e-4],
        "b1": [-0.1, 1.0],
        "b2": [-0.1, 1.0],
        "weight_decay": [-0.1],
        "warmup_steps": [-1],
        "milestones": [(2.0,), (0.5, -0.5)],
        "milestone_factor": [-0.1],
        "layer_decay": [0.0, 1.1],
        "clip_norm": [-1.0],
    },
    "PromptEncoderConfig": {"mask_in_chans": [0, 6]},
    "RecordDataConfig": {
        "path": [""],
        "image_dir": [""],
        "hold_out": [-0.1, 1.0],
        "max_images": [0],
        "max_mask_share": [0.0, 1.1],
        "max_bad_share": [-0.1, 1.1],
        "jitter": [(0.0, 1.0), (2.0, 1.0)],
        "num_workers": [-1],
        "prefetch": [0],
    },
    "RetrainConfig": {
        **{name: [0] for name in ("steps", "batch_size", "masks_per_image", "held_out_masks", "whole_model_images")},
        **{name: [0.0] for name in ("steps_per_image", "minutes", "learning_rate", "whole_learning_rate")},
        "margin": [-0.1],
        "max_loss": [-0.1],
        "seed": [-1, 2**32],
    },
    "RunOptions": {"profile_steps": [(5, 2), (5, 5), (-1, 3)]},
    "SamConfig": {
        "prompt_embed_dim": [0, -8, 100],
        "details": [-1],
        "text_embed_dim": [-1],
        "pixel_mean": [(-1.0, 0.0, 0.0), (0.0, 0.0, 256.0)],
        "pixel_std": [(0.0, 1.0, 1.0)],
        "dtype": ["float16"],
    },
    "TextOptions": {
        "templates": [(), ("no phrase",), ("{} and {}",)],
        "distractors": [("",)],
        "threshold": [-1.1, 1.1],
        "masks_per_phrase": [0],
        "mask_nms_thresh": [-0.1],
        "enlarge": [0.9],
        "masked_share": [-0.1, 1.1],
        "batch_size": [0],
    },
    "TextPromptConfig": {
        "towers": [""],
        "cache": [""],
        "looks": [0],
        "max_enlarge": [0.9],
        "keep_background": [-0.1, 1.1],
        "min_area": [-1],
    },
    "TextTowerConfig": {
        "vocab_size": [0],
        "context_length": [0],
        "width": [0, 100],
        "depth": [0],
        "num_heads": [0],
        "mlp_dim": [0],
    },
    "TinyVitConfig": {
        "image_size": [0, -16, 100],
        "widths": [(), (64,), (64, 128), (65, 128, 160, 320), (64, 128, 160, 321), (64, 128, 160, 0)],
        "depths": [(2, 2, 6), (2, 2, 6, 0)],
        "num_heads": [(4, 5), (4, 5, 0)],
        "window_sizes": [(7, 14), (7, 14, 0)],
        "mlp_ratio": [0.0],
        "expand_ratio": [0.0],
    },
    "StageConfig": {
        "image_size": [0],
        "batch_size": [0],
        "masks_per_image": [0],
        "num_steps": [0],
        "mask_stride": [0, 3],
        "num_points": [-1],
        "mosaics": [-0.1, 1.1],
        "num_examples": [0],
    },
    "TrainConfig": {
        "stages": [()],
        "workdir": [""],
        "init_from": [""],
        "storage_dtype": ["bogus", "bfloat16"],
        "accumulate": [0, -1],
        "minutes": [0.0, -1.0],
        "seed": [-1, 2**32],
        "log_every": [0],
        "eval_every": [-1],
        "eval_images": [0],
        "overlay_every": [-1],
        "checkpoint_every": [0],
        "keep": [0],
    },
    "TowersConfig": {
        "family": ["clap"],
        "embed_dim": [0],
        "activation": ["relu"],
        "pixel_std": [(0.0, 1.0, 1.0)],
    },
    "VideoConfig": {
        "memory": [0],
        "anchors": [0],
        "cells": [0],
        "radius": [0.0, 1.1],
        "temperature": [0.0],
        "cycle_radius": [0.0],
        "colour_weight": [-0.1],
        "carried_share": [-0.1, 1.1],
        "good_iou": [-0.1, 1.1],
        "occlusion_iou": [-0.1, 1.1],
    },
    "VisionTowerConfig": {
        "image_size": [0, 16],
        "patch_size": [0],
        "width": [0, 100],
        "depth": [0],
        "num_heads": [0],
        "mlp_dim": [0],
    },
}
# Fields that every value of the right type is good for: switches, configs that check themselves, and thresholds on
# numbers that a model may give of any size.
FREE = {
    "AmgConfig": {"pred_iou_thresh", "stability_score_thresh"},
    "AutomaticConfig": {"amg", "everything", "again"},
    "CompositeDataConfig": {"composite"},
    "FillConfig": {"amg"},
    "HqMaskDecoderConfig": {"hq_token_only", "iou_times_stability"},
    "ImageEncoderConfig": {"remat", "scan", "int8_mlp"},
    "InteractionConfig": {"box_noise_uniform", "box_multimask"},
    "MaskDecoderConfig": {"iou_times_stability"},
    "LossConfig": {"supervise_all_iou", "supervise_all_outputs", "sum_interactions"},
    "OptimConfig": {"cosine"},
    "RetrainConfig": {"automatic", "again"},
    "RunOptions": {"eval_only"},
    "RecordDataConfig": {"scaled_decode"},
    "SamConfig": {
        *("image_encoder", "prompt_encoder", "mask_decoder", "crf"),
        *("mask_threshold", "pred_iou_thresh", "stability_score_thresh"),
    },
    "TextPromptConfig": {"attend_to_mask"},
    "TowersConfig": {"vision", "text", "pixel_mean"},
    "TrainConfig": {"sam", "data", "interaction", "loss", "optim", "text", "augment", "finetune", "mesh"},
}
BAD["HqMaskDecoderConfig"] = BAD["MaskDecoderConfig"]
CLASSES = [getattr(configs, name) for name in configs.__all__ if dataclasses.is_dataclass(getattr(configs, name))]
CLASSES.append(RunOptions)
FIELDS = [(cls, field.name) for cls in CLASSES for field in dataclasses.fields(cls)]


def wrong_types(kind):
    """Values of types that an annotation does not name; a whole number is a good float."""
    named = {kind, *typing.get_args(kind)}
    yield from (value for value in ([1], object(), (object(),)) if value)
    yield from (
        value for value in ("text", 3, 2.5, True, None) if not {type(value), type(value) is int and float} & named
    )
    if float in named:
        yield from (math.nan, math.inf)


@pytest.mark.parametrize(("cls", "name"), FIELDS, ids=[f"{cls.__name__}.{name}" for cls, name in FIELDS])
def test_a_bad_value_is_one_line_that_names_the_field(cls, name):
    stated, free = BAD.get(cls.__name__, {}), FREE.get(cls.__name__, set())
    assert (name in stated) != (name in free), f"state bad values of {cls.__name__}.{name} in BAD, or that it is free"
    for value in [*stated.get(name, []), *wrong_types(typing.get_type_hints(cls)[name])]:
        with pytest.raises(ValueError, match=name) as error:
            cls(**{name: value})
        assert "\n" not in str(error.value)


def test_no_field_is_stated_that_is_gone():
    known = {(cls.__name__, name) for cls, name in FIELDS}
    assert {(cls, name) for table in (BAD, FREE) for cls, names in table.items() for name in names} <= known


def test_the_defaults_and_what_is_known_to_be_good_pass():
    for cls in CLASSES:
        cls()
    StageConfig(num_points=0, mosaics=0)
    FinetuneConfig(frozen=(".*encoder/.*",), embedding_cache="gs://bucket/cache")
    SamConfig(pixel_mean=(123, 116, 104))
    TrainConfig(eval_every=0, init_from="somewhere", seed=2**32 - 1)


def test_what_only_together_is_wrong_is_refused():
    hq = configs.HqMaskDecoderConfig()
    for wrong, message in (
        (lambda: dataclasses.replace(hq, iou_times_stability=True), "HQ-SAM has no iou_times_stability"),
        (lambda: SamConfig(mask_decoder=hq, details=8), "HQ-SAM has fine features of its own"),
        (lambda: SamConfig(image_encoder=configs.TinyVitConfig(), details=8), "a TinyViT needs details 0"),
        (lambda: SamConfig(mask_decoder=configs.HqMaskDecoderConfig(kernels="pallas")), "HQ-SAM has no TPU kernel"),
        (lambda: SamConfig(configs.ImageEncoderConfig(scan=True), mask_decoder=hq), "first global block"),
        (lambda: SamConfig(configs.ImageEncoderConfig(global_attn_indexes=()), mask_decoder=hq), "first global block"),
        (lambda: TrainConfig(sam=SamConfig(mask_decoder=hq)), "HQ-SAM is for inference"),
        (lambda: TrainConfig(sam=configs.mobile_sam()), r"a TinyViT \(MobileSAM\) is for inference"),
    ):
        with pytest.raises(ValueError, match=message):
            wrong()
    with pytest.raises(ValueError, match=r"focal_weight, dice_weight, .* above 0"):
        LossConfig(focal_weight=0, dice_weight=0, iou_weight=0)
    with pytest.raises(ValueError, match=r"stage image_size \[100\] must be a multiple of patch_size 16"):
        TrainConfig(stages=(StageConfig(image_size=100),))
    with pytest.raises(ValueError, match=r"steps 10 and minutes 1\.5 exclude each other"):
        configs.RetrainConfig(steps=10, minutes=1.5)
    with pytest.raises(ValueError, match="reuse 2 needs processes"):
        configs.CompositeDataConfig(num_workers=0, reuse=2)
    with pytest.raises(ValueError, match=r"reuse and stage num_examples \[7\] exclude each other"):
        TrainConfig(data=configs.CompositeDataConfig(reuse=2), stages=(StageConfig(num_examples=7),))
    with pytest.raises(ValueError, match=r"batch_size \[6\] must be a multiple of accumulate 4"):
        TrainConfig(stages=(StageConfig(batch_size=6),), accumulate=4)
