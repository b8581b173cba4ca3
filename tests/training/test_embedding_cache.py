import dataclasses
import json
import os
import signal
from functools import partial

import jax
import numpy as np
import pytest

from sam_jax import sharding
from sam_jax.checkpoint import save_model
from sam_jax.config import FinetuneConfig, InteractionConfig, MeshConfig, RecordDataConfig, StageConfig, TrainConfig
from sam_jax.data import record_examples
from sam_jax.data.record_stream import RecordStream
from sam_jax.data.records import image_key
from sam_jax.models.sam import Sam
from sam_jax.training import loop
from sam_jax.training.batches import make_batches, open_source
from sam_jax.training.embedding_cache import EmbeddingCache, encoder_settings
from sam_jax.training.interruption import Interrupted
from tests.tiny import SMALLEST, jitted, random_variables
from tests.tiny_sa1b import write_folder

STAGE = StageConfig(image_size=80, batch_size=2, masks_per_image=2, num_steps=4)


@pytest.fixture
def data(tmp_path):
    write_folder(tmp_path / "images", 5)
    (tmp_path / "images" / "sa_3.jpg").write_bytes(b"broken")
    return RecordDataConfig(str(tmp_path / "images"), hold_out=0.0, max_bad_share=0.5)


def open_cache(path, variables, stream, config=SMALLEST):
    settings = encoder_settings(config) | {"images": stream.image_settings()}
    return EmbeddingCache(path, 80, variables["params"]["image_encoder"], settings)


def test_embeddings_are_computed_once_and_batches_carry_them(data, tmp_path, monkeypatch):
    variables = random_variables(SMALLEST)
    stream = RecordStream(open_source(data), data, STAGE, seed=0)
    cache = open_cache(tmp_path / "cache", variables, stream)
    assert cache.fill(Sam(SMALLEST), variables, stream, batch_size=2)
    keys = {image_key((tmp_path / "images" / f"sa_{i}.jpg").read_bytes()) for i in (1, 2, 4, 5)}  # 3 cannot be decoded
    assert {file.stem for file in cache.path.glob("*.npy")} == keys
    times = {file.name: file.stat().mtime for file in cache.path.glob("*.npy")}
    assert cache.fill(Sam(SMALLEST), variables, stream, batch_size=2)
    assert times == {file.name: file.stat().mtime for file in cache.path.glob("*.npy")}

    with monkeypatch.context() as patch:  # nobody decodes an image any more
        patch.setattr(record_examples, "read_frame", None)
        batch = next(make_batches(data, STAGE, 0, 0, embeddings=str(cache.path)))
    assert "image" not in batch
    assert batch["image_embeddings"].shape == (2, 5, 5, 32)
    plain = next(make_batches(data, STAGE, 0, 0))
    np.testing.assert_array_equal(plain["image_id"], batch["image_id"])
    for name in ("masks", "mask_valid", "input_size"):
        np.testing.assert_array_equal(plain[name], batch[name])
    from sam_jax.ops.transforms import normalize_batch

    images = normalize_batch(plain["image"], plain["input_size"], SMALLEST.pixel_mean, SMALLEST.pixel_std)
    expected = jitted(SMALLEST, "encode_image")(variables, images)
    np.testing.assert_allclose(batch["image_embeddings"], expected, atol=5e-3)  # float16


def test_data_sets_of_the_same_ids_share_a_cache_without_mixing(tmp_path):
    """Ids are 1, 2, 3 in more than one data set; what an image shows decides."""
    variables, batches = random_variables(SMALLEST), []
    for name, seed in (("one", 0), ("other", 1)):
        write_folder(tmp_path / name, 3, seed=seed)
        data = RecordDataConfig(str(tmp_path / name), hold_out=0.0)
        stream = RecordStream(open_source(data), data, STAGE, seed=0)
        cache = open_cache(tmp_path / "cache", variables, stream)
        assert cache.fill(Sam(SMALLEST), variables, stream, batch_size=2)
        batches.append(next(make_batches(data, STAGE, 0, 0, embeddings=str(cache.path))))
    one, other = batches
    np.testing.assert_array_equal(one["image_id"], other["image_id"])
    assert np.abs(one["image_embeddings"] - other["image_embeddings"]).max() > 1e-2
    assert len(list(cache.path.glob("*.npy"))) == 6


def test_filling_stops_when_it_is_asked_to_and_goes_on(data, tmp_path):
    variables = random_variables(SMALLEST)
    stream = RecordStream(open_source(data), data, STAGE, seed=0)
    cache = open_cache(tmp_path / "cache", variables, stream)
    assert not cache.fill(Sam(SMALLEST), variables, stream, batch_size=2, stop=lambda number: number == 1)
    assert len(list(cache.path.glob("*.npy"))) == 2
    assert cache.fill(Sam(SMALLEST), variables, stream, batch_size=2)
    assert len(list(cache.path.glob("*.npy"))) == 4


def test_embeddings_of_another_encoder_or_made_otherwise_are_refused(data, tmp_path):
    stream = RecordStream(open_source(data), data, STAGE, seed=0)
    open_cache(tmp_path, random_variables(SMALLEST), stream)
    open_cache(tmp_path, random_variables(SMALLEST), stream)
    with pytest.raises(ValueError, match=r"another image encoder.*\(encoder differ\)"):
        open_cache(tmp_path, random_variables(SMALLEST, seed=1), stream)
    other = dataclasses.replace(SMALLEST, pixel_mean=(1.0, 2.0, 3.0))
    with pytest.raises(ValueError, match=r"of other settings \(pixel_mean differ\)"):
        open_cache(tmp_path, random_variables(SMALLEST), stream, other)
    data = dataclasses.replace(data, scaled_decode=True)
    stream = RecordStream(open_source(data), data, STAGE, seed=0)
    with pytest.raises(ValueError, match=r"\(images differ\)"):
        open_cache(tmp_path, random_variables(SMALLEST), stream)


@pytest.mark.slow
def test_a_run_on_a_cache_shows_overlays_evaluates_and_stops_while_it_is_filled(data, tmp_path, monkeypatch):
    save_model(tmp_path / "start", SMALLEST, random_variables(SMALLEST))
    config = TrainConfig(
        sam=SMALLEST,
        stages=(dataclasses.replace(STAGE, num_steps=1),),
        data=dataclasses.replace(data, hold_out=0.4, num_workers=0),
        interaction=InteractionConfig(num_points=0, num_mask_only_steps=0),
        finetune=FinetuneConfig(frozen=("image_encoder/.*",), embedding_cache=str(tmp_path / "cache")),
        mesh=MeshConfig(data=1),
        eval_every=0,
        overlay_every=1,
        init_from=str(tmp_path / "start"),
        workdir=str(tmp_path / "run"),
    )
    monkeypatch.setattr(sharding, "make_mesh", partial(sharding.make_mesh, devices=jax.devices()[:1]))
    with monkeypatch.context() as patch:
        key = RecordStream.key
        patch.setattr(RecordStream, "key", lambda *args: (os.kill(os.getpid(), signal.SIGTERM), key(*args))[1])
        with pytest.raises(Interrupted, match="stopped at step 0 of 1"):
            loop.train(config)
    assert len(list((tmp_path / "cache").rglob("*.npy"))) in (1, 2)
    loop.train(config)
    assert [path.name for path in (tmp_path / "run" / "overlays").iterdir()] == ["step_0000001.png"]
    loop.train(config, loop.RunOptions(eval_only=True))
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "eval_loss" in row] == [1]
    assert len(list((tmp_path / "cache").rglob("*.npy"))) == 4
