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
from sam_jax.convert.torch_to_flax import from_state_dict
from sam_jax.inference.automatic_mask_generator import SamAutomaticMaskGenerator
from sam_jax.inference.predictor import SamPredictor
from tests.tiny import TINY, random_variables

# The file does not tell the size of images: MobileSAM's. Few channels keep it fast.
MOBILE = dataclasses.replace(
    TINY,
    image_encoder=TinyVitConfig(
        widths=(4, 8, 8, 16), depths=(1, 1, 1, 1), num_heads=(2, 2, 4), window_sizes=(7, 5, 3), mlp_ratio=2.0
    ),
    mask_decoder=MaskDecoderConfig(depth=1, mlp_dim=64),
)
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


@pytest.mark.parametrize("family", ["mobile"])
def test_a_converted_directory_gives_masks(family, tmp_path, request):
    config = dataclasses.replace(MOBILE, image_encoder=dataclasses.replace(MOBILE.image_encoder, image_size=64))
    save_model(tmp_path / "model", config, request.getfixturevalue(family))
    model, variables = load_model(tmp_path / "model")
    assert load_config(tmp_path / "model") == config == model.config
    image = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)
    predictor = SamPredictor(model, variables)
    predictor.set_image(image)
    masks, ious, low_res = predictor.predict(np.array([[30, 20]]), np.array([1]))
    assert masks.shape == (len(ious), 60, 90)
    again = predictor.predict(np.array([[30, 20]]), np.array([1]), mask_input=low_res[:1], multimask_output=False)
    assert again.masks.shape == (1, 60, 90)
    assert predictor.predict_many(boxes=np.zeros((0, 4))).masks.shape == (0, *masks.shape)
    generator = SamAutomaticMaskGenerator(
        model, variables, points_per_side=2, points_per_batch=2, pred_iou_thresh=0.0, stability_score_thresh=0.0
    )
    for record in generator.generate(image):
        assert record["segmentation"].shape == (60, 90)


@pytest.mark.oracle
@pytest.mark.parametrize("family", ["mobile"])
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
