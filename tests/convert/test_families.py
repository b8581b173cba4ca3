"""Files of SAM's relatives, through the command and back into masks. Needs no torch but where it says oracle."""

import dataclasses

import jax
import numpy as np
import pytest
from PIL import Image

from sam_jax.checkpoint import load_config, load_model, save_model
from sam_jax.config import MaskDecoderConfig, TinyVitConfig
from sam_jax.convert.errors import ConversionError
from sam_jax.convert.flax_to_torch import to_state_dict
from sam_jax.convert.torch_to_flax import from_state_dict, load_official
from sam_jax.inference.automatic_mask_generator import SamAutomaticMaskGenerator
from sam_jax.inference.predictor import SamPredictor
from sam_jax.models.sam import Sam
from sam_jax.ops.planes import join_subpixels
from sam_jax.structs import Prompts
from tests.golden.make_key_lists import build_hugging_face, tiny_config
from tests.tiny import TINY, as_hq, jitted, random_variables

# The file does not tell the size of images: MobileSAM's. Few channels keep it fast.
MOBILE = dataclasses.replace(
    TINY,
    image_encoder=TinyVitConfig(
        widths=(4, 8, 8, 16), depths=(1, 1, 1, 1), num_heads=(2, 2, 4), window_sizes=(7, 5, 3), mlp_ratio=2.0
    ),
    mask_decoder=MaskDecoderConfig(depth=1, mlp_dim=64),
)
HQ = as_hq(dataclasses.replace(TINY, mask_decoder=MOBILE.mask_decoder))
UNUSED = {
    "image_encoder.norm_head.weight": np.ones(16, np.float32),
    "image_encoder.norm_head.bias": np.ones(16, np.float32),
    "image_encoder.head.weight": np.ones((10, 16), np.float32),
    "image_encoder.head.bias": np.ones(10, np.float32),
    "image_encoder.patch_embed.seq.0.bn.num_batches_tracked": np.array(3),
}


@pytest.fixture(scope="module")
def mobile():
    return random_variables(MOBILE)


@pytest.fixture(scope="module")
def hq():
    return random_variables(HQ)


def test_mobile_sam_converts_without_its_classifier(mobile):
    state = to_state_dict(mobile) | UNUSED
    assert state["image_encoder.layers.1.blocks.0.local_conv.c.weight"].shape == (8, 1, 3, 3)
    config, found = from_state_dict({f"module.{key}": array for key, array in state.items()})
    assert config == MOBILE
    jax.tree.map(np.testing.assert_array_equal, found, mobile)


def test_what_mobile_sam_lacks_is_named(mobile):
    state = to_state_dict(mobile)
    del state["image_encoder.layers.2.blocks.0.attn.proj.bias"]
    state["image_encoder.layers.2.blocks.0.adapter.weight"] = np.ones((2, 2), np.float32)
    with pytest.raises(ConversionError, match="looks like SAM with adapters"):
        from_state_dict(dict(state))
    state["image_encoder.extra"] = state.pop("image_encoder.layers.2.blocks.0.adapter.weight")
    with pytest.raises(ConversionError, match=r"missing: .*2\.blocks\.0\.attn\.proj\.bias; not part of SAM: .*extra"):
        from_state_dict(state)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["mobile", "hq"])
def test_a_converted_directory_gives_masks(family, tmp_path, request):
    variables = request.getfixturevalue(family)
    config, found = from_state_dict(to_state_dict(variables))
    jax.tree.map(np.testing.assert_array_equal, found, variables)
    config = dataclasses.replace(config, image_encoder=dataclasses.replace(config.image_encoder, image_size=80))
    save_model(tmp_path / "model", config, variables)
    model, variables = load_model(tmp_path / "model")
    assert load_config(tmp_path / "model") == config == model.config
    image = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)
    predictor = SamPredictor(model, variables)
    predictor.set_image(image)
    masks, ious, low_res = predictor.predict(np.array([[30, 20]]), np.array([1]))
    assert masks.shape == ({"mobile": 3, "hq": 1}[family], 60, 90)
    assert ious.shape == masks.shape[:1]
    again = predictor.predict(np.array([[30, 20]]), np.array([1]), mask_input=low_res[:1], multimask_output=False)
    assert again.masks.shape == (1, 60, 90)
    assert predictor.predict_many(boxes=np.zeros((0, 4))).masks.shape == (0, *masks.shape)
    generator = SamAutomaticMaskGenerator(
        model, variables, points_per_side=2, points_per_batch=2, pred_iou_thresh=0.0, stability_score_thresh=0.0
    )
    for record in generator.generate(image):
        assert record["segmentation"].shape == (60, 90)


@pytest.mark.oracle
@pytest.mark.parametrize("family", ["mobile", "hq"])
def test_the_commands(family, tmp_path, request, capsys):
    import torch

    from sam_jax.cli.main import main

    state = {key: torch.from_numpy(array) for key, array in to_state_dict(request.getfixturevalue(family)).items()}
    torch.save(state, tmp_path / "file.pt")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)).save(tmp_path / "image.png")
    directory = str(tmp_path / "model")
    assert main(["convert", "from-torch", str(tmp_path / "file.pt"), directory]) == 0
    assert main(["convert", "to-torch", directory, str(tmp_path / "back.pth")]) == 0
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)
    inputs = [str(tmp_path / "image.png"), "--point", "30,20", "--checkpoint", directory]
    assert main(["infer", *inputs, "--out", str(tmp_path / "out")]) == 0
    assert list((tmp_path / "out").rglob("*.png"))
    capsys.readouterr()


@pytest.mark.oracle
@pytest.mark.parametrize("hq_token_only", [False, True])
def test_predictions_are_those_of_hq_sams_predictor(hq_token_only):
    """Ambiguous prompts, boxes and masks fed back, by the class that comes with HQ-SAM."""
    from tests.oracle import build_official, build_predictor

    config = as_hq(dataclasses.replace(TINY, mask_decoder=MOBILE.mask_decoder), hq_token_only=hq_token_only)
    official = build_official(config)
    _, variables = from_state_dict({key: value.numpy() for key, value in official.state_dict().items()})
    theirs, ours = build_predictor(official), SamPredictor(Sam(config), variables)
    image = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)
    theirs.set_image(image)
    ours.set_image(image)
    prompts = {"point_coords": np.array([[30.0, 20.0]]), "point_labels": np.array([1])}
    for given in (prompts, {"box": np.array([10.0, 5.0, 60.0, 50.0])}, prompts):
        for multimask_output in (True, False):
            masks, ious, low_res = theirs.predict(
                **given, multimask_output=multimask_output, return_logits=True, hq_token_only=hq_token_only
            )
            found = ours.predict(**given, multimask_output=multimask_output, return_logits=True)
            assert found.masks.shape == masks.shape == (1, 60, 90)
            np.testing.assert_allclose(found.masks, masks, rtol=0, atol=1e-3)
            np.testing.assert_allclose(found.iou_predictions, ious, rtol=0, atol=1e-4)
            np.testing.assert_allclose(found.low_res_masks, low_res, rtol=0, atol=1e-3)
        prompts["mask_input"] = low_res


@pytest.mark.oracle
def test_hugging_faces_hq_sam_converts(tmp_path):
    """Up to the tokens: their decoder enlarges the pixels that go into the transformer, not those that come out, so
    that masks are others than those of HQ-SAM's own code from the same weights."""
    import torch

    from tests.oracle import randomise

    theirs = build_hugging_face(as_hq(tiny_config()))
    randomise(theirs, seed=1)
    theirs.save_pretrained(tmp_path)
    config, variables = load_official(tmp_path / "model.safetensors")
    assert config == as_hq(tiny_config())
    rng = np.random.default_rng(0)
    images = rng.standard_normal((1, config.image_size, config.image_size, 3)).astype(np.float32)
    points = rng.uniform(0, config.image_size, (1, 4, 3, 2)).astype(np.float32)
    labels = rng.integers(0, 2, (1, 4, 3))
    pixels, decoder = torch.tensor(images).permute(0, 3, 1, 2), theirs.mask_decoder
    given = {"input_points": torch.tensor(points), "input_labels": torch.tensor(labels)}
    with torch.no_grad():
        scores = theirs(pixel_values=pixels, **given, multimask_output=False).iou_scores
        seen = theirs.vision_encoder(pixels)
        x = decoder.activation(decoder.encoder_norm(decoder.encoder_conv1(seen.last_hidden_state)))
        y = decoder.compress_vit_conv1(seen.intermediate_embeddings[0].permute(0, 3, 1, 2))
        y = decoder.activation(decoder.compress_vit_norm(y))
        fine = decoder.encoder_conv2(x) + decoder.compress_vit_conv2(y)
    found = jitted(config, "__call__", multimask_output=False)(
        variables, images, Prompts(point_coords=points, point_labels=labels)
    )
    np.testing.assert_allclose(found.iou_predictions, scores, atol=1e-4)
    _, cells = np.split(jitted(config, "encode_image")(variables, images), [config.prompt_embed_dim], axis=-1)
    planes = cells.reshape(1, cells.shape[1] * cells.shape[2], 16, -1).transpose(0, 3, 2, 1)
    np.testing.assert_allclose(join_subpixels(planes, cells.shape[1:3]), fine, atol=1e-4)
