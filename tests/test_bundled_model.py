"""The model in the package on real photos, and the README's promises about it."""

import json
from pathlib import Path

import numpy as np
import pytest

import sam_jax
from benchmarks.prompt_quality import COLUMNS, score_photo
from sam_jax.checkpoint import bundled_model_path
from sam_jax.ops.rle import decode_mask

DEVSET = Path(__file__).parent / "devset_mini"
MAX_MEGABYTES = 15


@pytest.fixture(scope="module")
def labelled():
    """(photo, masks) pairs of the labelled set."""
    pairs = []
    for file in sorted(DEVSET.glob("*.json")):
        masks = [decode_mask(a["segmentation"]) for a in json.loads(file.read_text())["annotations"]]
        pairs.append((sam_jax.read_image(file.with_suffix(".jpg")), masks))
    return pairs


def test_it_keeps_the_quality_of_its_card(labelled):
    """The floors follow the card of the present weights; better weights raise them."""
    predictor = sam_jax.SamPredictor(*sam_jax.load_model())
    scores = np.concatenate([score_photo(predictor, image, masks) for image, masks in labelled])
    assert scores[:, COLUMNS.index("box")].mean() > 0.63
    assert scores[:, COLUMNS.index("best of 3")].mean() > 0.56


def test_it_is_small_enough_to_ship():
    size = sum(file.stat().st_size for file in Path(bundled_model_path()).rglob("*") if file.is_file())
    assert size <= MAX_MEGABYTES * 2**20
