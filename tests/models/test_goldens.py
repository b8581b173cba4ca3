"""Every stage of the model against arrays that the official PyTorch code gave. Needs no torch.

tests/golden/make_goldens.py made the arrays, and says what is in them.
"""

import functools
from pathlib import Path

import jax
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

from sam_jax.convert.rules import expected_leaves, official_key
from sam_jax.models.layers import resize_pos_embed
from sam_jax.models.sam import Sam
from sam_jax.ops.masks import postprocess_masks
from sam_jax.structs import Prompts
from tests.tiny import TINY, jitted

FILE = Path(__file__).parents[1] / "golden" / "official.npz"
KINDS = ("one_point", "three_points", "box", "box_negative", "mask", "point_mask")
close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=2e-5)


@pytest.fixture(scope="module")
def golden():
    with np.load(FILE) as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def converted(golden):
    """The official weights as variables of ours."""
    leaves = {}
    for path in expected_leaves(TINY):
        key, axes = official_key(path.split("/", 1)[1])
        array = golden[f"state/{key}"]
        leaves[path] = array if axes is None else array.transpose(axes)
    return unflatten_dict(leaves, sep="/")


def nhwc(x):
    return np.moveaxis(x, 1, -1)


def prompts_of(golden, kind):
    """The prompts of a kind, for one image: (2, ...) -> (1, 2, ...)."""
    group = f"prompts/{kind}/"
    fields = {name.removeprefix(group): value[None] for name, value in golden.items() if name.startswith(group)}
    if "mask_inputs" in fields:
        fields["mask_inputs"] = fields["mask_inputs"][:, :, 0]
    return Prompts(**fields)


@pytest.fixture(scope="module")
def encoder_stages(golden, converted):
    """What every module of the image encoder returned, for the square and the wide frame."""
    run = jitted(TINY, "encode_image", capture_intermediates=True, mutable="intermediates")

    def stages(images):
        embeddings, state = run(converted, nhwc(images))
        return embeddings, state["intermediates"]["image_encoder"]

    return {name: stages(golden[f"{name}/images"]) for name in ("encoder", "encoder_wide")}


@pytest.mark.parametrize("frame", ["encoder", "encoder_wide"])
def test_patch_embedding_and_positions(golden, converted, encoder_stages, frame):
    patches = encoder_stages[frame][1]["patch_embed"]["__call__"][0]
    table = resize_pos_embed(converted["params"]["image_encoder"]["pos_embed"], patches.shape[1:3])
    close(patches + table, golden[f"{frame}/embedded"])


@pytest.mark.parametrize("frame", ["encoder", "encoder_wide"])
@pytest.mark.parametrize("index", range(TINY.image_encoder.depth))
def test_encoder_blocks(golden, encoder_stages, frame, index):
    block = f"blocks_{index}"
    close(encoder_stages[frame][1][block]["__call__"][0], golden[f"{frame}/{block}"])


@pytest.mark.parametrize("frame", ["encoder", "encoder_wide"])
def test_image_embeddings(golden, encoder_stages, frame):
    close(encoder_stages[frame][0], nhwc(golden[f"{frame}/embeddings"]))


def test_image_pe(golden, converted):
    pe = Sam(TINY).apply(converted, method=lambda model: model.prompt_encoder.dense_pe((5, 5)))
    close(pe, nhwc(golden["image/pe"])[0])


@pytest.mark.parametrize("kind", KINDS)
def test_prompt_embeddings(golden, converted, kind):
    embedded = Sam(TINY).apply(
        converted,
        prompts_of(golden, kind),
        method=lambda model, prompts: model.prompt_encoder(prompts, (5, 5), (80, 80)),
    )
    sparse, dense = golden[f"decoder/{kind}/sparse"], golden[f"decoder/{kind}/dense"]
    close(embedded.sparse[0][embedded.sparse_valid[0]].reshape(sparse.shape), sparse)
    planes = dense.reshape(*dense.shape[:2], -1)
    close(np.broadcast_to(embedded.dense[0], planes.shape), planes)


@pytest.fixture(scope="module")
def decode(golden, converted):
    """kind -> MaskPredictions of all four masks, and what every module of the mask decoder returned."""
    run = jitted(TINY, "predict_masks", capture_intermediates=True, mutable="intermediates")

    @functools.cache
    def decode(kind):
        masks, state = run(converted, nhwc(golden["encoder/embeddings"]), prompts_of(golden, kind))
        return masks, state["intermediates"]["mask_decoder"]

    return decode


@pytest.mark.parametrize("kind", KINDS)
def test_two_way_transformer(golden, decode, kind):
    tokens, pixels = decode(kind)[1]["transformer"]["__call__"][0]
    close(tokens[0], golden[f"decoder/{kind}/transformer"])
    close(pixels[0], golden[f"decoder/{kind}/transformer_pixels"].swapaxes(-1, -2))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("output", "wanted"), [("multimask", slice(1, None)), ("single", slice(0, 1))])
def test_masks_and_scores(golden, decode, kind, output, wanted):
    masks = jax.tree.map(lambda x: x[0][:, wanted], decode(kind)[0])
    close(masks.low_res_masks, golden[f"decoder/{kind}/{output}/low_res_masks"])
    close(masks.iou_predictions, golden[f"decoder/{kind}/{output}/iou_predictions"])


@pytest.mark.parametrize("multimask", [True, False])
def test_multimask_output_chooses_the_masks(golden, converted, multimask):
    run = jitted(TINY, "decode_masks", multimask_output=multimask)
    masks = run(converted, nhwc(golden["encoder/embeddings"]), prompts_of(golden, "one_point"))
    name = "multimask" if multimask else "single"
    close(masks.low_res_masks[0], golden[f"decoder/one_point/{name}/low_res_masks"])
    close(masks.iou_predictions[0], golden[f"decoder/one_point/{name}/iou_predictions"])


@pytest.mark.parametrize("case", ["smaller", "larger"])
def test_postprocess_masks(golden, case):
    low_res = golden["decoder/box/single/low_res_masks"]
    input_size, original_size = (
        tuple(golden[f"postprocess/{case}/{name}"]) for name in ("input_size", "original_size")
    )
    out = postprocess_masks(low_res, input_size, original_size, (80, 80))
    close(out, golden[f"postprocess/{case}/logits"])
    assert out.dtype == np.float32
    one = postprocess_masks(low_res[0, 0], input_size, original_size, (80, 80))
    close(one, out[0, 0])


def test_goldens_are_not_trivial(golden):
    """Arrays of zeros, or prompts without effect, would let everything above pass."""
    stages = [name for name in golden if name.startswith(("encoder", "decoder", "postprocess"))]
    names = [name for name in stages if golden[name].ndim > 1 and golden[name].size]
    assert len(names) > 40
    assert min(np.abs(golden[name]).max() for name in names) > 0.05
    masks = [golden[f"decoder/{kind}/multimask/low_res_masks"] for kind in KINDS]
    masks += [golden[f"decoder/{kind}/multimask/low_res_masks"][::-1] for kind in KINDS]
    assert min(np.abs(a - b).max() for i, a in enumerate(masks) for b in masks[:i]) > 0.05
    assert all((mask > 0).mean() not in (0, 1) for mask in masks)
