"""Model directories and training checkpoints: what is written is what is read, and every failure says what to do."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from sam_jax import checkpoint
from sam_jax.checkpoint import CheckpointError, StateStore, load_config, load_model, load_variables, save_model
from sam_jax.config import for_training, to_dict
from tests.tiny import SMALLEST, TINY, random_variables

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def small():
    return jax.tree.map(jnp.asarray, random_variables(SMALLEST))


@pytest.fixture(scope="module")
def original(small, tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "small"
    save_model(path, SMALLEST, small)
    return path


@pytest.fixture
def saved(original, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(original, tmp_path / "model")


def assert_equal(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_round_trip(original, small):
    assert load_config(original) == SMALLEST
    assert_equal(load_variables(original, small), small)
    model, variables = load_model(original, dtype="bfloat16")
    assert model.config == dataclasses.replace(SMALLEST, dtype="bfloat16")
    assert_equal(variables, small)
    assert load_model(original, crf=True)[0].config == dataclasses.replace(SMALLEST, crf=True)
    assert {path.name for path in original.parent.iterdir()} == {"small"}  # nothing unfinished is left


def test_float16_on_disk_is_float32_in_memory(small, original, tmp_path):
    save_model(tmp_path / "half", SMALLEST, small, dtype=jnp.float16)
    loaded = load_variables(tmp_path / "half", small)
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded)} == {jnp.dtype("float32")}
    rounded = jax.tree.map(lambda x: x.astype(jnp.float16).astype(jnp.float32), small["params"])
    assert_equal(loaded, {"params": rounded, "constants": small["constants"]})

    # Not by the size of files: Orbax may leave pieces of an unfinished flush beside them.
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        stored = checkpointer.metadata(tmp_path / "half" / checkpoint.VARIABLES_DIR).item_metadata.tree
    assert {jnp.dtype(leaf.dtype) for leaf in jax.tree.leaves(stored["params"])} == {jnp.dtype("float16")}
    assert {jnp.dtype(leaf.dtype) for leaf in jax.tree.leaves(stored["constants"])} == {jnp.dtype("float32")}


def test_how_it_trained_is_not_how_it_runs(original, small, tmp_path):
    """What is saved is the network; directories of earlier versions, which hold training's settings, load the same."""
    encoder = dataclasses.replace(SMALLEST.image_encoder, token_order="windows", int8_mlp=True)
    trained = for_training(dataclasses.replace(SMALLEST, image_encoder=encoder, crf=True), 0.4, dropout_rate=0.1)
    save_model(tmp_path / "trained", trained, small)
    kept = json.loads((tmp_path / "trained" / "config.json").read_text())["sam"]
    assert not {"remat", "drop_path_rate", "token_order", "int8_mlp", "attention"} & kept["image_encoder"].keys()
    assert not {"kernels", "dropout_rate"} & kept["mask_decoder"].keys()
    assert "dtype" not in kept

    old = shutil.copytree(original, tmp_path / "old")
    (old / "config.json").write_text(json.dumps({"format": checkpoint.FORMAT, "sam": to_dict(trained)}))
    network = dataclasses.replace(SMALLEST, crf=True)
    for path in (tmp_path / "trained", old):
        assert load_config(path) == network
        assert load_model(path)[0].config == network
    model, _ = load_model(old, dtype="bfloat16", kernels="xla")
    assert (model.config.dtype, model.config.image_encoder.attention) == ("bfloat16", "xla")
    assert model.config.mask_decoder.kernels == "xla"
    with pytest.raises(ValueError, match="kernels 'cuda' is not one of auto, xla, pallas, triton"):
        load_model(old, kernels="cuda")


def test_an_existing_directory_is_never_overwritten(saved, small):
    before = (saved / "config.json").read_bytes()
    with pytest.raises(CheckpointError, match=f"{saved} exists already; remove it or choose another"):
        save_model(saved, SMALLEST, small)
    assert (saved / "config.json").read_bytes() == before


def test_a_failed_save_leaves_nothing(small, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "to_saved_dict", lambda _: {"not": object()})
    with pytest.raises(TypeError):
        save_model(tmp_path / "model", SMALLEST, small)
    assert list(tmp_path.iterdir()) == []


def test_leftovers_of_a_killed_save_do_not_disturb(small, tmp_path):
    (tmp_path / ".model.unfinished" / "variables").mkdir(parents=True)
    save_model(tmp_path / "model", SMALLEST, small)
    assert_equal(load_variables(tmp_path / "model", small), small)


def _remove(name):
    def damage(path):
        target = path / name
        shutil.rmtree(target) if target.is_dir() else target.unlink()

    return damage


def _config(text):
    return lambda path: (path / "config.json").write_text(text)


def _edit(change):
    def damage(path):
        content = json.loads((path / "config.json").read_text())
        change(content)
        (path / "config.json").write_text(json.dumps(content))

    return damage


def _empty(path):
    for file in (path / "variables").rglob("*"):
        if file.is_file():
            file.unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, r"does not exist; expected a directory written by `sam-jax convert from-torch` or by training"),
        (lambda path: (shutil.rmtree(path), path.write_text("x")), "is a file, not a model directory; expected"),
        (_remove("config.json"), "has no config.json; expected"),
        (_config("{"), "is not a model config of this library"),
        (_config("[1]"), "is not a model config of this library"),
        (_config('{"model_type": "sam"}'), r"its format is None, not 'sam_jax\.model\.v1'"),
        (_edit(lambda c: c["sam"].update(prompt_embed_dims=1)), r"unknown config key.*did you mean prompt_embed_dim\?"),
        (_edit(lambda c: c["sam"]["image_encoder"].update(depth=2)), r"does not fit its config: missing .*blocks_1"),
        (_edit(lambda c: c["sam"]["mask_decoder"].update(num_multimask_outputs=2)), "unknown .*mlps_3"),
        (
            _edit(lambda c: c["sam"]["image_encoder"].update(image_size=160)),
            r"image_encoder/pos_embed is \(1, 5, 5, 32\), its config says \(1, 10, 10, 32\)",
        ),
        (_remove("variables"), "holds a config but no variables/; it is incomplete, write it again"),
        (_empty, "variables is not a readable Orbax checkpoint"),
    ],
)
def test_every_damage_is_one_line_that_names_the_path(saved, damage, message):
    damage(saved)
    with pytest.raises(CheckpointError, match=message) as failure:
        load_model(saved)
    assert str(saved) in str(failure.value)
    assert "\n" not in str(failure.value)


def test_truncated_data_is_damage(saved):
    """In a process of its own, because Orbax leaves reads behind that complain whenever they are collected."""
    largest = max((saved / "variables").rglob("*"), key=lambda file: file.stat().st_size * file.is_file())
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
    code = f"""
from sam_jax.checkpoint import CheckpointError, load_model
try:
    load_model({str(saved)!r})
except CheckpointError as error:
    print(error)
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert re.fullmatch(rf"{saved}\S* is damaged .*write it again\n", run.stdout)


def test_variables_of_another_model_are_refused(original, variables):
    with pytest.raises(CheckpointError, match=r"does not fit.*missing params/image_encoder/blocks_1/attn/proj/bias"):
        load_variables(original, variables)
    assert TINY != SMALLEST


def _state(value):
    return {"step": jnp.asarray(value), "params": {"w": jnp.full((3, 4), value, jnp.float32)}}


def test_state_store_keeps_the_newest_and_the_best(tmp_path):
    with StateStore(tmp_path / "state", keep=2) as store:
        assert store.newest_step() is None
        assert store.best_step() is None
        for step, miou in ((1, None), (2, 0.5), (3, 0.3), (4, None), (5, None)):
            store.save(step, _state(step), miou)
        store.save(5, _state(99))  # a step is saved once
        assert store.best_step() == 2
    kept = {path.name for path in (tmp_path / "state").iterdir() if path.is_dir()}
    assert kept == {"2", "4", "5"}
    with StateStore(tmp_path / "state") as store:
        assert store.newest_step() == 5
        assert store.best_step() == 2
        assert_equal(store.restore(5, _state(0)), _state(5))
        assert_equal(store.restore(2, _state(0)), _state(2))


def test_half_written_states_are_passed_over(tmp_path):
    with StateStore(tmp_path / "state") as store:
        store.save(1, _state(1))
    (tmp_path / "state" / "2.orbax-checkpoint-tmp" / "default").mkdir(parents=True)
    with StateStore(tmp_path / "state") as store:
        assert store.newest_step() == 1
        assert_equal(store.restore(1, _state(0)), _state(1))


def test_a_model_directory_gives_way_where_that_is_asked_for(tmp_path):
    for seed in (0, 1):
        save_model(tmp_path / "model", TINY, random_variables(TINY, seed), overwrite=True)
    assert_equal(load_model(tmp_path / "model")[1], random_variables(TINY, 1))
