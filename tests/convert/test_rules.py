"""The tables cover every leaf and every key. Needs neither torch nor transformers."""

import dataclasses

import pytest

from sam_jax.config import (
    ImageEncoderConfig,
    MaskDecoderConfig,
    SamConfig,
    TinyVitConfig,
    mobile_sam,
    vit_b,
    vit_h,
    vit_l,
    vit_tiny,
)
from sam_jax.convert.errors import ConversionError
from sam_jax.convert.rules import UNUSED, expected_leaves, official_key, official_name
from sam_jax.convert.sizes import infer_config
from tests.golden.make_key_lists import read_key_list, tiny_config
from tests.tiny import as_hq, official_part

UNUSUAL = SamConfig(
    image_encoder=ImageEncoderConfig(
        image_size=224, embed_dim=48, depth=13, num_heads=3, window_size=5, global_attn_indexes=(1, 12)
    ),
    mask_decoder=MaskDecoderConfig(
        depth=3, num_heads=4, mlp_dim=64, attention_downsample_rate=4, num_multimask_outputs=2, iou_head_depth=2
    ),
    prompt_embed_dim=64,
)
OFFICIAL_TINY = official_part(vit_tiny())
ODD_MOBILE = SamConfig(
    image_encoder=TinyVitConfig(
        widths=(16, 24, 36), depths=(3, 1, 2), num_heads=(2, 3), window_sizes=(5, 4), mlp_ratio=3.0, expand_ratio=2.5
    ),
    mask_decoder=MaskDecoderConfig(mlp_dim=64),
    prompt_embed_dim=64,
)


def official_shapes(config):
    shapes = {}
    for path, leaf in expected_leaves(config).items():
        key, axes = official_key(path.split("/", 1)[1])
        assert key not in shapes, f"{key} is used twice"
        shapes[key] = leaf.shape if axes is None else tuple(leaf.shape[axes.index(i)] for i in range(len(axes)))
    return shapes


def test_official_keys_and_shapes_of_vit_b_are_exactly_those_of_the_official_code():
    config, golden = read_key_list("official_vit_b_keys.json")
    assert config == vit_b()
    assert official_shapes(config) == golden


def test_keys_and_shapes_of_mobile_sam_are_those_of_its_code():
    config, golden = read_key_list("mobile_sam_keys.json")
    assert config == mobile_sam()
    assert official_shapes(config) == {key: shape for key, shape in golden.items() if not UNUSED.fullmatch(key)}
    unused = {key.rsplit(".", 1)[1] for key in golden if UNUSED.fullmatch(key)}
    assert unused == {"weight", "bias", "num_batches_tracked"}


def test_keys_and_shapes_of_hq_sam_are_those_of_its_code():
    config, golden = read_key_list("hq_sam_keys.json")
    assert config == as_hq(tiny_config())
    assert official_shapes(config) == golden


@pytest.mark.parametrize("name", ["hf_sam_keys.json", "hf_hq_sam_keys.json"])
def test_hugging_face_names_become_exactly_the_official_ones(name):
    config, golden = read_key_list(name)
    renamed = {official_name(key, golden): shape for key, shape in golden.items()}
    assert renamed == official_shapes(config)
    twice = [key for key in golden if official_name(key, golden).endswith("gaussian_matrix")]
    assert len(golden) - len(renamed) == len(twice) - 1


@pytest.mark.parametrize(
    "config",
    [
        vit_b(),
        vit_l(),
        vit_h(),
        OFFICIAL_TINY,
        tiny_config(),
        UNUSUAL,
        mobile_sam(),
        ODD_MOBILE,
        as_hq(UNUSUAL),
        as_hq(ODD_MOBILE),
    ],
    ids=["vit_b", "vit_l", "vit_h", "vit_tiny", "tiny", "unusual", "mobile_sam", "odd_mobile", "hq", "hq_mobile"],
)
def test_config_is_inferred_from_shapes(config):
    found = infer_config(official_shapes(config), config.mask_decoder.num_heads)
    # Thresholds are no shapes: a converted model has the published ones, and leaves its masks as they are.
    assert found == dataclasses.replace(config, pred_iou_thresh=0.88, stability_score_thresh=0.95, crf=False)


def test_constants_hold_the_positional_matrix_and_nothing_else():
    constants = [path for path in expected_leaves(vit_tiny()) if not path.startswith("params/")]
    assert constants == ["constants/prompt_encoder/pe_layer/positional_encoding_gaussian_matrix"]


def test_window_as_large_as_the_grid_counts_as_global():
    encoder = dataclasses.replace(OFFICIAL_TINY.image_encoder, window_size=32)
    found = infer_config(official_shapes(dataclasses.replace(OFFICIAL_TINY, image_encoder=encoder)))
    assert found.image_encoder.global_attn_indexes == tuple(range(6))
    assert found.image_encoder.window_size == 32


def test_mlp_width_survives_as_a_ratio():
    shapes = official_shapes(tiny_config())
    for hidden in range(1, 2000, 37):
        encoder = infer_config(shapes | {"image_encoder.blocks.0.mlp.lin1.weight": (hidden, 48)}, 4).image_encoder
        assert int(encoder.embed_dim * encoder.mlp_ratio) == hidden


def test_errors_name_value_and_remedy():
    shapes = official_shapes(tiny_config())
    with pytest.raises(ConversionError, match="--decoder-num-heads"):
        infer_config(shapes, decoder_num_heads=7)
    with pytest.raises(ConversionError, match="positive, not -8"):
        infer_config(shapes, decoder_num_heads=-8)
    with pytest.raises(ConversionError, match=r"several sizes \(\[5, 6\]\)"):
        infer_config(shapes | {"image_encoder.blocks.2.attn.rel_pos_h": (11, 16)}, 4)
    with pytest.raises(ConversionError, match=r"48, is not a multiple of .* 13"):
        infer_config(shapes | {"image_encoder.blocks.0.attn.rel_pos_h": (9, 13)}, 4)
    with pytest.raises(ConversionError, match=r"it lacks image_encoder\.pos_embed; .*conv1\.weight"):
        infer_config({"conv1.weight": (64, 3, 7, 7)})
    with pytest.raises(ConversionError, match=r"pos_embed has shape .* 4 axes"):
        infer_config(shapes | {"image_encoder.pos_embed": (1, 144, 48)}, 4)
