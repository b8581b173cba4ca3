"""Exported encoders and decoders in onnxruntime: beside the model, as the official export's users call them."""

import dataclasses

import numpy as np
import pytest

from sam_jax.checkpoint import save_model
from sam_jax.cli import main
from sam_jax.convert import flax_to_onnx
from sam_jax.convert.errors import ConversionError
from sam_jax.inference.predictor import SamPredictor
from sam_jax.models.sam import Sam
from tests.predicting import H, W, make_image
from tests.tiny import TINY, as_hq, random_variables

# Everything that an export can need: details, edge refinement, and IoUs that count the masks' stability.
FULL = dataclasses.replace(
    TINY, details=8, crf=True, mask_decoder=dataclasses.replace(TINY.mask_decoder, iou_times_stability=True)
)
MODELS = {"plain": TINY, "full": FULL, "hq": as_hq(TINY)}
NAMES = ["plain", *(pytest.param(name, marks=pytest.mark.slow) for name in ("full", "hq"))]


def test_what_is_missing_is_named(monkeypatch, checkpoint, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "jax2onnx", None)
    with pytest.raises(ConversionError, match=r"jax2onnx is not installed.*pip install 'sam_jax\[onnx\]'"):
        flax_to_onnx.convert(str(checkpoint), str(tmp_path / "onnx"))
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_not_overwritten(checkpoint, tmp_path, capsys):
    assert main.main(["convert", "to-onnx", str(checkpoint), str(tmp_path)]) == 2
    assert "exists already" in capsys.readouterr().err


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """model -> (config, variables, directory), made when first asked for."""
    made = {}

    def make(name):
        if name not in made:
            directory, config = tmp_path_factory.mktemp(name), MODELS[name]
            variables = random_variables(config)
            save_model(directory / "model", config, variables)
            source, target = str(directory / "model"), str(directory / "onnx")
            assert main.main(["convert", "to-onnx", source, target]) == 0
            made[name] = config, variables, directory / "onnx"
        return made[name]

    return make


def session(file):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(file), options)


def names(values):
    return [value.name for value in values]


OFFICIAL = ["image_embeddings", "point_coords", "point_labels", "mask_input", "has_mask_input", "orig_im_size"]


@pytest.mark.oracle
@pytest.mark.parametrize("name", NAMES)
def test_the_decoder_has_the_official_signature(exported, name):
    more = {"plain": [], "full": ["image_details", "input_image"], "hq": ["image_details"]}[name]
    decoder = session(exported(name)[2] / "decoder.onnx")
    assert sorted(names(decoder.get_inputs())) == sorted([*OFFICIAL, *more])
    assert names(decoder.get_outputs()) == ["masks", "iou_predictions", "low_res_masks"]
    assert {value.type for value in decoder.get_inputs() if value.name != "input_image"} == {"tensor(float)"}


@pytest.mark.oracle
@pytest.mark.parametrize("points", [1, 2, 5, 40])
@pytest.mark.parametrize("name", NAMES)
def test_any_number_of_points(exported, name, points):
    """Encoder and decoder one after the other, as a page or a label tool does, beside the predictor."""
    config, variables, directory = exported(name)
    image, rng = make_image(H, W, 3), np.random.default_rng(points)
    coords, labels = rng.random((points, 2)) * (W, H), rng.integers(0, 2, points)
    predictor = SamPredictor(Sam(config), variables)
    predictor.set_image(image)
    many = [predictor.predict(coords, labels, multimask_output=m, return_logits=True) for m in (False, True)]
    frame = np.zeros((1, 80, 80, 3), np.uint8)
    frame[0, : predictor.input_size[0]] = predictor_frame(image)
    given = {"input_image": frame, "orig_im_size": np.array([H, W], np.float32)}
    encoder, decoder = session(directory / "encoder.onnx"), session(directory / "decoder.onnx")
    given |= dict(zip(names(encoder.get_outputs()), encoder.run(None, given), strict=True))
    scale = np.array([predictor.input_size[1] / W, predictor.input_size[0] / H])
    given |= {
        "point_coords": np.concatenate([coords * scale, [[0, 0]]])[None].astype(np.float32),
        "point_labels": np.append(labels, -1)[None].astype(np.float32),
        "mask_input": np.zeros((1, 1, 20, 20), np.float32),
        "has_mask_input": np.zeros(1, np.float32),
    }
    wanted = {value.name: given[value.name] for value in decoder.get_inputs()}
    masks, iou, low_res = decoder.run(None, wanted)
    assert masks.shape == (1, config.mask_decoder.num_masks, H, W)
    np.testing.assert_allclose(low_res[0], np.concatenate([one.low_res_masks for one in many]), atol=1e-3)
    np.testing.assert_allclose(iou[0], np.concatenate([one.iou_predictions for one in many]), atol=1e-2)
    expected = np.concatenate([one.masks for one in many])
    surely = abs(expected) > 1e-2
    np.testing.assert_array_equal((masks[0] > 0)[surely], (expected > 0)[surely])


def predictor_frame(image):
    from sam_jax.ops.transforms import resize_longest_side

    return resize_longest_side(image, 80)


@pytest.mark.oracle
@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float16", "int8"])
def test_smaller_weights(exported, precision, tmp_path, capsys):
    import onnx

    _, _, directory = exported("full")
    source = str(directory.parent / "model")
    arguments = ["--precision", precision, "--part", "decoder", "--return-single-mask"]
    assert main.main(["convert", "to-onnx", source, str(tmp_path / "out"), *arguments]) == 0, capsys.readouterr().err
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["decoder.onnx"]
    kinds = {"float16": {onnx.TensorProto.FLOAT16}, "int8": {onnx.TensorProto.INT8, onnx.TensorProto.UINT8}}[precision]
    kept = onnx.load(tmp_path / "out" / "decoder.onnx").graph.initializer
    matrices = [one for one in kept if len(one.dims) == 2 and min(one.dims) >= 8]
    assert any(one.data_type in kinds for one in matrices), [one.data_type for one in matrices]
    assert "mean IoU" in capsys.readouterr().out
    assert session(tmp_path / "out" / "decoder.onnx").get_outputs()[0].shape[1] == 1


@pytest.mark.oracle
@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_masks_of_low_resolution(exported, name, tmp_path, capsys):
    """The command holds them, enlarged, to the model's."""
    source = str(exported(name)[2].parent / "model")
    arguments = ["--part", "decoder", "--low-res-only"]
    assert main.main(["convert", "to-onnx", source, str(tmp_path / "out"), *arguments]) == 0, capsys.readouterr().err
    decoder = session(tmp_path / "out" / "decoder.onnx")
    refined = ["refined_masks"] * MODELS[name].crf
    assert names(decoder.get_outputs()) == ["iou_predictions", "low_res_masks", *refined]
    assert ("orig_im_size" in names(decoder.get_inputs())) == MODELS[name].crf


@pytest.mark.oracle
def test_a_wrong_export_is_an_error(checkpoint, tmp_path, monkeypatch, capsys):
    """A decoder whose graph is that of other weights is not written."""
    right = flax_to_onnx.decoder
    other = random_variables(TINY, seed=1)
    monkeypatch.setattr(flax_to_onnx, "decoder", lambda model, _, *outputs: right(model, other, *outputs))
    arguments = ["convert", "to-onnx", str(checkpoint), str(tmp_path / "onnx"), "--part", "decoder"]
    assert main.main(arguments) == 2
    assert "masks' logits are off by" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
