"""Which fields of a SamConfig are the network, and which say how it runs."""

import dataclasses

import pytest

from sam_jax.config import (
    HqMaskDecoderConfig,
    SamConfig,
    bare_network,
    for_inference,
    for_training,
    mobile_sam,
    network_differences,
    vit_b,
    vit_tiny,
)
from sam_jax.config.running import ANSWERS, NETWORK, RUNNING, sam_fields

# Another value of every field, by its dotted name.
OTHERS = {
    "image_encoder.image_size": 512,
    "image_encoder.patch_size": 32,
    "image_encoder.embed_dim": 384,
    "image_encoder.depth": 13,
    "image_encoder.num_heads": 6,
    "image_encoder.mlp_ratio": 3.0,
    "image_encoder.window_size": 16,
    "image_encoder.global_attn_indexes": (1,),
    "image_encoder.drop_path_rate": 0.4,
    "image_encoder.remat": True,
    "image_encoder.scan": True,
    "image_encoder.attention": "xla",
    "image_encoder.token_order": "grid",
    "image_encoder.int8_mlp": True,
    "prompt_encoder.mask_in_chans": 8,
    "mask_decoder.depth": 3,
    "mask_decoder.num_heads": 4,
    "mask_decoder.mlp_dim": 1024,
    "mask_decoder.attention_downsample_rate": 1,
    "mask_decoder.num_multimask_outputs": 4,
    "mask_decoder.iou_head_depth": 2,
    "mask_decoder.iou_head_hidden_dim": 128,
    "mask_decoder.iou_times_stability": True,
    "mask_decoder.kernels": "xla",
    "mask_decoder.dropout_rate": 0.1,
    "prompt_embed_dim": 128,
    "details": 32,
    "text_embed_dim": 512,
    "pixel_mean": (0.0, 0.0, 0.0),
    "pixel_std": (255.0, 255.0, 255.0),
    "crf": True,
    "mask_threshold": -1.0,
    "pred_iou_thresh": 0.5,
    "stability_score_thresh": 0.5,
    "dtype": "bfloat16",
}
# The same of what a TinyViT has beside, or of another type.
TINY_VIT_OTHERS = {
    "image_encoder.image_size": 512,
    "image_encoder.widths": (32, 64, 80, 160),
    "image_encoder.depths": (1, 1, 1, 1),
    "image_encoder.num_heads": (1, 1, 1),
    "image_encoder.window_sizes": (5, 5, 5),
    "image_encoder.mlp_ratio": 3.0,
    "image_encoder.expand_ratio": 3.0,
}
HQ = SamConfig(mask_decoder=HqMaskDecoderConfig())


def changed(name, value, config):
    """`config` with one field changed, by its dotted name."""
    *part, leaf = name.split(".")
    if part:
        leaf, value = part[0], dataclasses.replace(getattr(config, part[0]), **{leaf: value})
    return dataclasses.replace(config, **{leaf: value})


def test_every_field_is_in_one_class():
    """A new field of SamConfig, or of a config inside it, needs a line in config/running.py and one above."""
    fields = sam_fields(SamConfig()) | sam_fields(mobile_sam()) | sam_fields(HQ)
    for name in fields:
        assert sum(name in names for names in (NETWORK, RUNNING, ANSWERS)) == 1, f"{name} needs one class"
    assert (
        NETWORK | RUNNING | ANSWERS
        == set(fields)
        == OTHERS.keys() | TINY_VIT_OTHERS.keys() | {"mask_decoder.hq_token_only"}
    )


@pytest.mark.parametrize("name", OTHERS)
def test_weights_fit_unless_the_network_differs(name):
    config, other = vit_b(), changed(name, OTHERS[name], vit_b())
    assert other != config
    expected = [f"{name} {OTHERS[name]}, not {sam_fields(config)[name]}"] if name in NETWORK else []
    assert network_differences(other, config) == expected
    assert (bare_network(other) == config) == (name in RUNNING)


@pytest.mark.parametrize("name", TINY_VIT_OTHERS)
def test_weights_of_a_tiny_vit_fit_unless_it_differs(name):
    other = changed(name, TINY_VIT_OTHERS[name], mobile_sam())
    default = sam_fields(mobile_sam())[name]
    assert network_differences(other, mobile_sam()) == [f"{name} {TINY_VIT_OTHERS[name]}, not {default}"]
    assert bare_network(other) == other


def test_a_tiny_vit_is_another_network_and_for_inference():
    assert network_differences(mobile_sam(), vit_b()) == ["image_encoder of kind TinyVitConfig, not ImageEncoderConfig"]
    assert for_inference(mobile_sam(), "bfloat16", "xla").image_encoder == mobile_sam().image_encoder
    for wrong in (lambda: for_inference(mobile_sam(), "int8"), lambda: for_training(mobile_sam())):
        with pytest.raises(ValueError, match=r"a TinyViT \(MobileSAM\) is for inference"):
            wrong()


def test_hq_sam_is_another_network_that_keeps_which_masks_it_gives():
    only = changed("mask_decoder.hq_token_only", True, HQ)
    assert network_differences(only, HQ) == []
    assert bare_network(only) == for_inference(only) == only
    assert network_differences(HQ, vit_b()) == ["mask_decoder of kind HqMaskDecoderConfig, not MaskDecoderConfig"]


def test_training_and_inference_leave_the_network_as_it_is():
    for config in (vit_b(), vit_tiny()):
        training = for_training(config, 0.6, dropout_rate=0.1)
        assert network_differences(training, config) == []
        assert bare_network(training) == for_inference(training) == config
        assert for_inference(training, "bfloat16") == dataclasses.replace(config, dtype="bfloat16")
    pallas = for_inference(vit_b(), kernels="pallas")
    assert (pallas.image_encoder.attention, pallas.mask_decoder.kernels) == ("pallas", "pallas")
    triton = for_inference(vit_b(), kernels="triton")
    assert (triton.image_encoder.attention, triton.mask_decoder.kernels) == ("triton", "auto")


def test_a_ratio_may_be_off_by_its_last_digit():
    assert network_differences(changed("image_encoder.mlp_ratio", 4.000000001, vit_b()), vit_b()) == []
