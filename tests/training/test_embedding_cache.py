import numpy as np
import pytest

from sam_jax.config import RecordDataConfig, StageConfig
from sam_jax.data import record_examples
from sam_jax.data.pipeline import make_batches, open_stream
from sam_jax.models.sam import Sam
from sam_jax.training.embedding_cache import EmbeddingCache
from tests.tiny import SMALLEST, jitted, random_variables
from tests.tiny_sa1b import write_folder

STAGE = StageConfig(image_size=80, batch_size=2, masks_per_image=2, num_steps=4)


@pytest.fixture
def data(tmp_path):
    write_folder(tmp_path / "photos", 5)
    (tmp_path / "photos" / "sa_3.jpg").write_bytes(b"broken")
    return RecordDataConfig(str(tmp_path / "photos"), hold_out=0.0, max_bad_share=0.5)


def test_embeddings_are_computed_once_and_batches_carry_them(data, tmp_path, monkeypatch):
    variables = random_variables(SMALLEST)
    cache = EmbeddingCache(tmp_path / "cache", 80, variables["params"]["image_encoder"])
    stream = open_stream(data, STAGE, seed=0, held_out=False)
    cache.fill(Sam(SMALLEST), variables, stream.picture, stream.image_ids, batch_size=2)
    assert {file.name for file in cache.path.glob("*.npy")} == {f"{i}.npy" for i in (1, 2, 4, 5)}  # 3 cannot be read
    times = {file.name: file.stat().mtime for file in cache.path.glob("*.npy")}
    cache.fill(Sam(SMALLEST), variables, stream.picture, stream.image_ids, batch_size=2)
    assert times == {file.name: file.stat().mtime for file in cache.path.glob("*.npy")}

    with monkeypatch.context() as patch:  # nobody decodes a picture any more
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


def test_embeddings_of_another_encoder_are_refused(tmp_path):
    EmbeddingCache(tmp_path, 80, random_variables(SMALLEST)["params"]["image_encoder"])
    EmbeddingCache(tmp_path, 80, random_variables(SMALLEST)["params"]["image_encoder"])
    with pytest.raises(ValueError, match="another image encoder"):
        EmbeddingCache(tmp_path, 80, random_variables(SMALLEST, seed=1)["params"]["image_encoder"])
