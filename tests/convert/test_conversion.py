"""Conversions against the official code and Hugging Face's, through the real command lines."""

import contextlib
import dataclasses
import io
import os
import pickle
import resource
import runpy
import subprocess
import sys
import types
from pathlib import Path

import jax
import numpy as np
import pytest

from sam_jax.checkpoint import load_config, save_model
from sam_jax.config import vit_h
from sam_jax.convert.torch_to_flax import load_official
from sam_jax.models.sam import Sam
from sam_jax.structs import Prompts
from tests.golden.make_key_lists import build_hugging_face, tiny_config
from tests.tiny import TINY, random_variables

pytestmark = pytest.mark.oracle
ROOT = Path(__file__).parents[2]
HEADS = ("--decoder-num-heads", "4")


def run(module, *args):
    command = [sys.executable, "-m", f"convert.{module}", *map(str, args)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def run_here(module, *args):
    """The same in this process, which has torch and JAX already."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [module, *map(str, args)])
        with pytest.raises(SystemExit) as stop:
            runpy.run_module(f"convert.{module}", run_name="__main__")
    return types.SimpleNamespace(returncode=stop.value.code, stdout=out.getvalue(), stderr=err.getvalue())


@pytest.fixture(scope="module")
def official():
    from tests.oracle import build_official

    return build_official(tiny_config())


@pytest.fixture
def pth(official, tmp_path):
    import torch

    path = tmp_path / "sam.pth"
    torch.save(official.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def hugging_face():
    from tests.oracle import randomise

    model = build_hugging_face(tiny_config())
    randomise(model, seed=1)
    return model


def prompts_and_image():
    rng = np.random.default_rng(0)
    size = tiny_config().image_size
    image = rng.standard_normal((1, size, size, 3)).astype(np.float32)
    image[:, size * 2 // 3 :] = 0
    points = rng.uniform(0, size, (4, 3, 2)).astype(np.float32)
    return image, points, rng.integers(0, 2, (4, 3))


def predict(config, variables, image, points, labels):
    model = Sam(config)
    prompts = Prompts(point_coords=points[None], point_labels=labels[None])

    @jax.jit
    def both(variables, image, prompts):
        embeddings = model.apply(variables, image, method="encode_image")
        return embeddings, model.apply(variables, embeddings, prompts, True, method="decode_masks")

    return both(variables, image, prompts)


def test_round_trip_is_bit_exact_and_the_official_code_loads_it(official, pth, tmp_path):
    import torch

    there = run("torch_to_flax", pth, tmp_path / "flax", *HEADS)
    assert (there.returncode, there.stderr) == (0, ""), there.stderr
    assert "3 blocks of width 48, 96 px" in there.stdout
    assert "4 heads" in there.stdout
    assert load_config(tmp_path / "flax") == tiny_config()
    back = run("flax_to_torch", tmp_path / "flax", tmp_path / "back.pth")
    assert (back.returncode, back.stderr) == (0, ""), back.stderr
    state, original = torch.load(tmp_path / "back.pth", weights_only=True), official.state_dict()
    assert state.keys() == original.keys()
    assert all(torch.equal(state[key], original[key]) for key in state)
    official.load_state_dict(state, strict=True)
    assert sorted(os.listdir(tmp_path)) == ["back.pth", "flax", "sam.pth"]


def test_outputs_equal_the_official_ones(official, pth):
    import torch

    image, points, labels = prompts_and_image()
    with torch.no_grad():
        embeddings = official.image_encoder(torch.tensor(image).permute(0, 3, 1, 2))
        sparse, dense = official.prompt_encoder((torch.tensor(points), torch.tensor(labels)), None, None)
        pe = official.prompt_encoder.get_dense_pe()
        masks, ious = official.mask_decoder(embeddings, pe, sparse, dense, multimask_output=True)
    ours, result = predict(*load_official(pth, decoder_num_heads=4), image, points, labels)
    np.testing.assert_allclose(ours, embeddings.permute(0, 2, 3, 1), atol=1e-4)
    np.testing.assert_allclose(result.low_res_masks[0], masks, atol=1e-4)
    np.testing.assert_allclose(result.iou_predictions[0], ious, atol=1e-4)


def test_hugging_face_files_convert_and_give_the_same_masks(hugging_face, tmp_path):
    import torch

    hugging_face.save_pretrained(tmp_path / "hf")
    config, variables = load_official(tmp_path / "hf" / "model.safetensors")
    assert config == tiny_config()  # the heads come from config.json
    image, points, labels = prompts_and_image()
    with torch.no_grad():
        theirs = hugging_face(
            pixel_values=torch.tensor(image).permute(0, 3, 1, 2),
            input_points=torch.tensor(points)[None],
            input_labels=torch.tensor(labels)[None],
            multimask_output=True,
        )
    _, ours = predict(config, variables, image, points, labels)
    # Their decoder's LayerNorms have epsilon 1e-6 where the official ones have 1e-5.
    np.testing.assert_allclose(ours.low_res_masks, theirs.pred_masks, atol=1e-4)
    np.testing.assert_allclose(ours.iou_predictions, theirs.iou_scores, atol=1e-4)


def test_hugging_face_duplicate_may_be_present_but_must_agree(hugging_face, tmp_path):
    from safetensors.torch import save_file

    state = {key: value.clone() for key, value in hugging_face.state_dict().items()}
    assert "prompt_encoder.shared_embedding.positional_embedding" in state
    save_file(state, tmp_path / "both.safetensors")
    load_official(tmp_path / "both.safetensors", 4)
    state["prompt_encoder.shared_embedding.positional_embedding"] += 1
    save_file(state, tmp_path / "differ.safetensors")
    expect_refusal(tmp_path, tmp_path / "differ.safetensors", "shared_embedding.positional_embedding", "differ")


@pytest.mark.parametrize("form", ["safetensors", "model", "state_dict", "legacy", "bfloat16"])
def test_other_containers_give_the_same_variables(official, pth, tmp_path, form, capsys):
    import torch
    from safetensors.torch import save_file

    state, path = official.state_dict(), tmp_path / "other.safetensors"
    if form == "bfloat16":
        state = {key: value.bfloat16() for key, value in state.items()}
        torch.save({key: value.float() for key, value in state.items()}, pth)
    if form in ("safetensors", "bfloat16"):
        save_file(state, path)
    else:
        path = tmp_path / "other.pth"
        content = {form: state, "epoch": 3} if form in ("model", "state_dict") else state
        torch.save(content, path, _use_new_zipfile_serialization=form != "legacy")
    expected, found = load_official(pth, 4), load_official(path, 4)
    assert found[0] == expected[0]
    jax.tree.map(np.testing.assert_array_equal, found[1], expected[1])
    assert ("cannot be mapped" in capsys.readouterr().err) == (form == "legacy")


def expect_refusal(folder, source, *words, target="out", module="torch_to_flax"):
    """The command fails with one line that holds `words`, exit code 2, and leaves `folder` as it was."""
    before = sorted(folder.rglob("*"))
    done = run_here(module, source, folder / target)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("sam-jax convert ")
    assert done.stderr.count("\n") == 1, done.stderr
    for word in (str(source), *words):
        assert word in done.stderr
    assert sorted(folder.rglob("*")) == before


def test_missing_file_and_directory_are_refused(tmp_path):
    expect_refusal(tmp_path, tmp_path / "none.pth", "does not exist")
    expect_refusal(tmp_path, tmp_path, "is a directory")


@pytest.mark.parametrize("keep", [0, 3, 100, 0.5, 0.999])
def test_truncated_pth_is_refused(pth, tmp_path, keep):
    data = pth.read_bytes()
    pth.write_bytes(data[: keep if isinstance(keep, int) else int(len(data) * keep)])
    expect_refusal(tmp_path, pth, "truncated or not a PyTorch checkpoint", "download it again")


def test_foreign_files_are_refused(official, tmp_path):
    from safetensors.torch import save_file

    page = tmp_path / "page.pth"
    page.write_text("<!doctype html><title>404</title>")
    expect_refusal(tmp_path, page, "not a PyTorch checkpoint")
    save_file(official.state_dict(), tmp_path / "cut.safetensors")
    data = (tmp_path / "cut.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(data[:-100])
    expect_refusal(tmp_path, tmp_path / "cut.safetensors", "truncated or not a safetensors file")


def test_other_networks_are_refused(tmp_path):
    import torch

    path = tmp_path / "other.pth"
    torch.save({f"layer{i}.0.conv1.weight": torch.ones(2, 2) for i in range(122)}, path)
    expect_refusal(tmp_path, path, "its 122 tensors are others (layer0.0.conv1.weight,", "sam_vit_b_01ec64.pth")
    torch.save({"model": {"image_encoder.trunk.pos_embed": torch.ones(1, 2)}}, path)
    expect_refusal(tmp_path, path, "SAM 2")
    torch.save([torch.ones(2)], path)
    expect_refusal(tmp_path, path, "holds a list, not a state dict")
    torch.save({"weight": torch.ones(2), "epoch": 3}, path)
    expect_refusal(tmp_path, path, "its entry 'epoch' is a int, not a tensor")


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("plain", [False, True])
def test_pth_with_code_is_refused_and_does_not_run(tmp_path, plain):
    import torch

    path, trace = tmp_path / "evil.pth", tmp_path / "ran"
    if plain:
        path.write_bytes(pickle.dumps({"a": Payload(str(trace))}, protocol=2))
    else:
        torch.save({"a": Payload(str(trace))}, path)
    expect_refusal(tmp_path, path, "contains code", "posix.mkdir", "state_dict()")
    assert not trace.exists()


def test_a_whole_pickled_model_is_refused(official, tmp_path):
    import torch

    torch.save(official, tmp_path / "model.pth")
    expect_refusal(tmp_path, tmp_path / "model.pth", "contains code or objects", "segment_anything")


def test_faulty_tensors_are_named(official, pth, tmp_path):
    import torch

    def expect(*words, **changes):
        state = official.state_dict() | {key.replace("__", "."): value for key, value in changes.items()}
        torch.save({key: value for key, value in state.items() if value is not None}, pth)
        expect_refusal(tmp_path, pth, *words)

    expect(
        "missing: image_encoder.neck.1.bias, mask_decoder.iou_token.weight",
        "not part of SAM: mask_decoder.extra, pixel",
        "misshapen: image_encoder.neck.1.weight is (3,), expected (64,) for this size",
        image_encoder__neck__1__bias=None,
        mask_decoder__iou_token__weight=None,
        image_encoder__neck__1__weight=torch.ones(3),
        mask_decoder__extra=torch.ones(1),
        pixel=torch.ones(1),
    )
    bad = torch.ones(64)
    for value in (float("nan"), float("inf")):
        bad[5] = value
        expect("image_encoder.neck.1.bias holds NaN or infinity", image_encoder__neck__1__bias=bad)
    expect("image_encoder.neck.1.bias has dtype int64", image_encoder__neck__1__bias=torch.arange(64))


def test_existing_outputs_are_kept(pth, tmp_path):
    (tmp_path / "out").mkdir()
    done = run_here("torch_to_flax", pth, tmp_path / "out")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert f"{tmp_path / 'out'} exists already; remove it" in done.stderr
    done = run_here("flax_to_torch", tmp_path / "none", pth)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert f"{pth} exists already" in done.stderr
    expect_refusal(tmp_path, tmp_path / "out", "no config.json", target="new.pth", module="flax_to_torch")


def test_a_model_with_details_has_no_official_form(tmp_path):
    config = dataclasses.replace(TINY, details=8)
    save_model(tmp_path / "detailed", config, random_variables(config))
    expect_refusal(
        tmp_path, tmp_path / "detailed", "holds a model with details", target="no.pth", module="flax_to_torch"
    )


def test_predicted_ious_times_stability_have_no_official_form(tmp_path):
    config = dataclasses.replace(TINY, mask_decoder=dataclasses.replace(TINY.mask_decoder, iou_times_stability=True))
    save_model(tmp_path / "stable", config, random_variables(config))
    expect_refusal(
        tmp_path, tmp_path / "stable", "multiplies predicted IoUs by stability", target="no.pth", module="flax_to_torch"
    )


@pytest.mark.slow
def test_vit_h_converts_both_ways_within_6_gb(tmp_path):
    import torch

    from tests.oracle import build_official

    torch.save(build_official(vit_h()).state_dict(), tmp_path / "h.pth")
    for module, source, target in (("torch_to_flax", "h.pth", "h"), ("flax_to_torch", "h", "back.pth")):
        assert run(module, tmp_path / source, tmp_path / target).returncode == 0
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    assert peak < 6e9, f"{peak / 1e9:.2f} GB"
