"""Prefixes that wrappers put before SAM's names are taken off; networks made of SAM are named. Needs no torch."""

import jax
import numpy as np
import pytest

from sam_jax.convert import mae_to_flax
from sam_jax.convert.errors import ConversionError
from sam_jax.convert.flax_to_torch import to_state_dict
from sam_jax.convert.foreign import refuse_relatives, without_prefixes
from sam_jax.convert.torch_to_flax import from_state_dict
from tests.golden.make_key_lists import read_key_list
from tests.tiny import SMALLEST, random_variables

HEADS = SMALLEST.mask_decoder.num_heads
PREFIXES = ["module.", "sam.", "model.", "_orig_mod.", "net.", "module._orig_mod.model.sam.", "base_model.model."]


@pytest.fixture(scope="module")
def variables():
    return random_variables(SMALLEST)


@pytest.fixture
def state(variables):
    return to_state_dict(variables)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_prefix_of_all_tensors_is_taken_off(state, variables, prefix):
    config, found = from_state_dict({prefix + key: array for key, array in state.items()}, HEADS)
    assert config == SMALLEST
    jax.tree.map(np.testing.assert_array_equal, found, variables)


def test_a_compiled_part_has_its_own_names_back(state):
    """torch.compile(sam.image_encoder) and DataParallel(sam.mask_decoder)."""
    names = {
        key: key.replace("image_encoder.", "image_encoder._orig_mod.").replace("mask_decoder.", "mask_decoder.module.")
        for key in state
    }
    assert without_prefixes({names[key]: array for key, array in state.items()}).keys() == state.keys()


def test_parts_of_sam_are_no_prefix():
    """A file that has but one part stays what it is, for the error that names what is missing."""
    for key in ("image_encoder.pos_embed", "mask_decoder.iou_token.weight", "blocks.0.norm1.weight", "pos_embed"):
        assert without_prefixes({key: 1}) == {key: 1}
    for name in ("official_vit_b_keys.json", "hf_sam_keys.json"):
        keys = read_key_list(name)[1]
        assert without_prefixes(keys) == keys


def test_two_tensors_never_become_one():
    with pytest.raises(ConversionError, match=r"module\.a\.b and a\.module\.b are two tensors for a\.b; remove one"):
        without_prefixes({"module.a.b": 1, "a.module.b": 2, "c": 3})


def test_a_prefix_that_not_all_share_stays_and_is_named(state):
    names = {f"model.{key}": array for key, array in state.items()}
    with pytest.raises(ConversionError, match=r"it lacks image_encoder\.pos_embed; .*model\."):
        from_state_dict(names | {"loss.weight": np.ones(1)}, HEADS)


def test_masked_autoencoders_have_prefixes_too():
    shapes = {"pos_embed": (1, 197, 768)} | {f"blocks.{i}.norm1.bias": (768,) for i in range(12)}
    with pytest.raises(ConversionError, match=r"^missing: blocks\.0\.attn\.proj\.bias"):
        mae_to_flax.from_state_dict({f"module.{key}": np.zeros(shape) for key, shape in shapes.items()})


# A key of each that the official network lacks.
RELATIVES = [
    ("image_encoder.backbone.stages.0.op_list.0.main.conv.weight", "convolutional image encoder"),
    ("mask_decoder.final_output_upscaling_layers.0.0.weight", "EfficientSAM"),
    ("prompt_encoder.bbox_top_left_embeddings.weight", "EfficientSAM"),
    ("image_encoder.blocks.0.MLP_Adapter.D_fc1.weight", "SAM with adapters"),
    ("image_encoder.blocks.0.Space_Adapter.D_fc1.weight", "SAM with adapters"),
    ("image_encoder.blocks.0.Adapter.channel.0.weight", "SAM with adapters"),
    ("image_encoder.blocks.0.mlp.adapter_down.weight", "SAM with adapters"),
    ("image_encoder.prompt_generator.shared_mlp.weight", "SAM with adapters"),
    ("image_encoder.blocks.0.attn.qkv.linear_a_q.weight", "LoRA"),
    ("image_encoder.blocks.0.attn.qkv.lora_A.default.weight", "LoRA"),
    ("w_a_000", "LoRA"),
    ("image_encoder.trunk.pos_embed", "SAM 2"),
    ("memory_attention.layers.0.norm1.weight", "SAM 2"),
    ("vision_encoder.backbone.blocks.0.attn.qkv.weight", "SAM 2"),
    ("detector.backbone.vision_backbone.trunk.pos_embed", "SAM 3"),
]


@pytest.mark.parametrize(("key", "name"), RELATIVES)
def test_a_relative_is_named_with_its_key(state, key, name):
    state = {f"module.{known}": array for known, array in (state | {key: np.ones((2, 2))}).items()}
    with pytest.raises(ConversionError, match=f"^looks like .*{name}.*1 of its .*, such as {key}"):
        from_state_dict(state, HEADS)


def test_fine_tuned_sam_has_the_same_names(state, variables):
    """MedSAM and its like: a class of their own around SAM's parts, which lists them in another order."""
    order = ("image_encoder.", "mask_decoder.", "prompt_encoder.")
    theirs = {f"module.{key}": state[key] for part in order for key in state if key.startswith(part)}
    assert len(theirs) == len(state)
    config, found = from_state_dict(theirs, HEADS)
    assert config == SMALLEST
    jax.tree.map(np.testing.assert_array_equal, found, variables)


def test_sam_itself_is_no_relative(state):
    refuse_relatives(state)
    for name in ("official_vit_b_keys.json", "mobile_sam_keys.json", "hq_sam_keys.json", "hf_sam_keys.json"):
        refuse_relatives(read_key_list(name)[1])
