"""An exported decoder of official weights' shapes (ViT-B) beside the official code's own export module."""

import numpy as np
import pytest

from sam_jax.config import vit_b
from sam_jax.convert import flax_to_onnx
from sam_jax.convert.torch_to_flax import from_state_dict
from sam_jax.models.sam import Sam

pytestmark = pytest.mark.oracle


@pytest.mark.parametrize("single", [False, True])
def test_it_computes_what_the_official_one_does(single, tmp_path):
    """The official `SamOnnxModel`, which its script exports, with the same inputs by the same names."""
    import onnx
    import onnxruntime
    import torch

    from tests.oracle import build_official

    official = build_official(vit_b())
    from segment_anything.utils.onnx import SamOnnxModel

    theirs = SamOnnxModel(official, return_single_mask=single).eval()
    state = {key: tensor.numpy() for key, tensor in official.state_dict().items()}
    config, variables = from_state_dict(state, vit_b().mask_decoder.num_heads)
    onnx.save(flax_to_onnx.decoder(Sam(config), variables, single), tmp_path / "decoder.onnx")
    ours = onnxruntime.InferenceSession(str(tmp_path / "decoder.onnx"))
    rng = np.random.default_rng(0)
    for labels in ([1, -1], [1, 0, 1, -1], [2, 3], [1, 0, 2, 3], [1]):
        given = {
            "image_embeddings": rng.standard_normal((1, 256, 64, 64)),
            "point_coords": rng.random((1, len(labels), 2)) * 1000,
            "point_labels": np.array([labels]),
            "mask_input": rng.standard_normal((1, 1, 256, 256)),
            "has_mask_input": np.array([len(labels) % 2]),
            "orig_im_size": np.array([427, 640]),
        }
        given = {name: value.astype(np.float32) for name, value in given.items()}
        with torch.no_grad():
            expected = theirs(*(torch.from_numpy(value) for value in given.values()))
        for found, want in zip(ours.run(None, given), expected, strict=True):
            scale = max(1.0, float(want.square().mean()) ** 0.5)
            np.testing.assert_allclose(found / scale, want.numpy() / scale, atol=2e-4)
