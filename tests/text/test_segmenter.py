"""What phrases name among masks: crops, scores against distractors, the choice, boxes, detectors and the errors."""

import dataclasses
import re

import numpy as np
import pytest
from PIL import Image

from sam_jax.config import TextOptions
from sam_jax.inference.overlays import mask_record
from sam_jax.models.sam import Sam
from sam_jax.ops.rle import decode_mask
from sam_jax.text.candidates import PhraseBoxes, embed_masks
from sam_jax.text.crops import crop_mask, square_around
from sam_jax.text.scores import PhraseScorer, choose
from sam_jax.text.segmenter import TextSegmenter
from sam_jax.text.tokenizers import TextError
from tests.tiny import SMALLEST, random_variables
from tests.tiny_towers import TINY_CLIP, colour_towers, loaded

RED, GREEN, BLUE = (230, 20, 30), (20, 200, 40), (30, 40, 220)
PLAIN = TextOptions(templates=("{}",), distractors=("background", "something else"))


@pytest.fixture(scope="module")
def towers():
    return loaded(TINY_CLIP, colour_towers())


@pytest.fixture(scope="module")
def scene():
    """A grey image (60, 90) with a red, a green and a blue square, and their records."""
    image, records = np.full((60, 90, 3), 120, np.uint8), []
    for number, (colour, x) in enumerate(zip((RED, GREEN, BLUE), (5, 35, 65), strict=True)):
        mask = np.zeros((60, 90), bool)
        mask[10:30, x : x + 20] = True
        image[mask] = colour
        records.append(mask_record(number, mask, 0.9, {}))
    return image, records


def test_a_phrase_finds_its_colour(towers, scene):
    image, records = scene
    embeddings = embed_masks(towers, image, records, PLAIN)
    scores = PhraseScorer(towers, PLAIN).scores(embeddings, ["the red square", "green", "a blue ball", "a dog"])
    assert scores.shape == (3, 4)
    assert scores[:, :3].argmax(axis=0).tolist() == [0, 1, 2]
    assert (scores[:, :3].max(axis=0) > 0.9).all()
    assert (scores[:, :3] + 2 * np.eye(3) < 0.1).sum() == 6
    # A phrase that no mask is more like than what it is set against.
    assert scores[:, 3].max() < 0.5


def test_phrases_are_scored_each_by_itself(towers, scene):
    image, records = scene
    embeddings, scorer = embed_masks(towers, image, records, PLAIN), PhraseScorer(towers, PLAIN)
    alone = scorer.scores(embeddings, ["red"])[:, 0]
    np.testing.assert_allclose(scorer.scores(embeddings, ["the green", "red", "red"])[:, 1:].T, [alone] * 2, rtol=1e-4)
    # What a phrase says is no distractor of it.
    against = dataclasses.replace(PLAIN, distractors=("background", "The red"))
    lone = dataclasses.replace(PLAIN, distractors=("background",))
    np.testing.assert_allclose(
        PhraseScorer(towers, against).scores(embeddings, ["a red"]),
        PhraseScorer(towers, lone).scores(embeddings, ["a red"]),
        rtol=1e-4,
    )
    with pytest.raises(ValueError, match="all distractors say 'a background'"):
        PhraseScorer(towers, lone).scores(embeddings, ["a background"])


def test_scores_by_hand(towers, scene):
    image, records = scene
    embeddings = embed_masks(towers, image, records, PLAIN)
    texts = towers.embed_texts(["red", "background", "something else"])
    logits = np.exp(3) * embeddings.astype(np.float64) @ texts.T
    expected = np.exp(logits[:, 0]) / np.exp(logits).sum(axis=1)
    np.testing.assert_allclose(PhraseScorer(towers, PLAIN).scores(embeddings, ["red"])[:, 0], expected, rtol=1e-4)
    cosines = dataclasses.replace(PLAIN, distractors=())
    np.testing.assert_allclose(
        PhraseScorer(towers, cosines).scores(embeddings, ["red"])[:, 0], embeddings @ texts[0], rtol=1e-6
    )


def test_templates_are_averaged(towers):
    both = dataclasses.replace(PLAIN, templates=("{}", "a ball of {}."))
    mean = towers.embed_texts(["red", "a ball of red."]).mean(axis=0)
    np.testing.assert_allclose(PhraseScorer(towers, both).embed(["red"])[0], mean / np.linalg.norm(mean), rtol=1e-5)


def test_crops_with_and_without_background(towers, scene):
    image, records = scene
    config, mask = towers.config, decode_mask(records[0]["segmentation"])
    with_it, without = (crop_mask(config, image, mask, 2.0, background) for background in (True, False))
    assert with_it.pixels.shape == (24, 24, 3)
    np.testing.assert_allclose(with_it.pixels[12, 12], RED, atol=2)
    np.testing.assert_allclose(with_it.pixels[12, 22], (120, 120, 120), atol=2)
    np.testing.assert_allclose(without.pixels[12, 22], np.rint(config.pixel_mean), atol=2)
    # Left of x = 0 there is no image.
    np.testing.assert_allclose(with_it.pixels[12, 0], np.rint(config.pixel_mean), atol=2)
    assert with_it.tokens_inside.all()
    assert crop_mask(config, image, mask, 6.0).tokens_inside.tolist() == [[0, 0, 0], [0, 1, 0], [0, 0, 0]]
    with pytest.raises(ValueError, match="the mask is empty"):
        crop_mask(config, image, np.zeros_like(mask))


@pytest.mark.parametrize(("box", "enlarge"), [((3, 4, 12, 6), 1.0), ((0, 0, 0, 0), 2.0), ((5, 1, 5, 40), 1.3)])
def test_squares_hold_their_boxes(box, enlarge):
    x, y, side = square_around(np.array(box), enlarge)
    assert x <= box[0]
    assert y <= box[1]
    assert x + side > box[2]
    assert y + side > box[3]
    assert side == max(1, round((max(box[2] - box[0], box[3] - box[1]) + 1) * enlarge))


def test_masks_are_seen_as_by_the_library_of_images(towers, scene):
    """A crop is Pillow's, of the square alone."""
    image, records = scene
    mask = decode_mask(records[1]["segmentation"])
    expected = Image.fromarray(image[5:35, 30:60]).resize((24, 24), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(crop_mask(towers.config, image, mask, 1.5).pixels, np.asarray(expected))


def test_the_choice(scene):
    _, records = scene
    rles = [record["segmentation"] for record in records] + [records[0]["segmentation"]]
    assert choose(rles, np.array([0.7, 0.9, 0.4, 0.8]), TextOptions()) == [1, 3]
    assert choose(rles, np.array([0.7, 0.9, 0.4, 0.8]), TextOptions(masks_per_phrase=1)) == [1]
    assert choose(rles, np.array([0.7, 0.9, 0.4, 0.8]), TextOptions(threshold=0, mask_nms_thresh=1.0)) == [1, 3, 0, 2]
    assert choose([], np.zeros(0), TextOptions()) == []


def test_masks_without_a_pixel_are_like_nothing(towers, scene):
    image, records = scene
    empty = mask_record(0, np.zeros((60, 90), bool), 0.1, {})
    found = embed_masks(towers, image, [empty, records[0]], PLAIN)
    assert not found[0].any()
    assert np.linalg.norm(found[1]) == pytest.approx(1, rel=1e-5)
    assert embed_masks(towers, image, [empty], PLAIN).shape == (1, 20)


@pytest.fixture(scope="module")
def sam():
    return Sam(SMALLEST), random_variables(SMALLEST)


def test_given_boxes_are_scored(sam, towers, scene):
    image, _ = scene
    options = dataclasses.replace(PLAIN, threshold=0.0, mask_nms_thresh=1.0)
    segmenter = TextSegmenter(*sam, towers, options=options)
    boxes = np.array([[5, 10, 25, 30], [35, 10, 55, 30]])
    records = segmenter.segment(image, ["red", "a dog"], boxes)
    assert [record["text"] for record in records] == ["red"] * 2 + ["a dog"] * 2
    assert sorted(record["box"] for record in records[:2]) == boxes.tolist()
    assert records[0]["score"] >= records[1]["score"]
    candidates, scores = segmenter.score(image, ["red", "a dog"], boxes)
    assert len(candidates) == 2
    assert sorted(scores[:, 0])[::-1] == [record["score"] for record in records[:2]]


def test_a_detector_takes_the_place_of_everything(sam, scene):
    image, _ = scene
    calls = []

    def detector(image, phrases):
        calls.append((image.shape, list(phrases)))
        return [PhraseBoxes([[5, 10, 25, 30], [35, 10, 55, 30]], [0.6, 0.9]), PhraseBoxes([], [])]

    segmenter = TextSegmenter(*sam, detector=detector)
    records = segmenter.segment(image, ["a cat", "a dog"])
    assert calls == [((60, 90, 3), ["a cat", "a dog"])]
    assert [(record["text"], record["score"]) for record in records] == [("a cat", 0.9), ("a cat", 0.6)]
    assert records[0]["box"] == [35, 10, 55, 30]
    with pytest.raises(ValueError, match="boxes of 2 phrases for 1"):
        segmenter.segment(image, ["a cat"])
    with pytest.raises(ValueError, match=r"no text model is given; give towers"):
        segmenter.segment(image, ["a cat"], boxes=[[5, 10, 25, 30]])


@pytest.mark.parametrize(
    ("phrases", "message"),
    [
        (["a dog", " "], "text ' ' is empty"),
        (["x" * 10_000], "has 10,000 characters"),
        ([], "no phrase is given; expected some, such as ['a dog']"),
        ("a dog", "phrases is the text 'a dog'; expected a list of phrases"),
    ],
)
def test_phrases_that_say_nothing(sam, towers, scene, phrases, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        TextSegmenter(*sam, towers).segment(scene[0], phrases)


def test_a_segmenter_needs_something_that_knows_texts(sam):
    with pytest.raises(ValueError, match="no text model is given"):
        TextSegmenter(*sam)
    with pytest.raises(ValueError, match="unknown options"):
        TextSegmenter(*sam, loaded(TINY_CLIP), points_per_sid=3)


def test_words_that_no_tower_knows(sam, towers, scene):
    strange = dataclasses.replace(towers.tokenizer, is_strange=lambda text, tokens: True)
    with pytest.raises(TextError, match="no word of text"):
        TextSegmenter(*sam, dataclasses.replace(towers, tokenizer=strange)).segment(scene[0], ["ሰላም"])


@pytest.mark.long
def test_everything_that_is_red(towers, scene):
    """The bundled model's masks of everything, without a hint of where things are."""
    import sam_jax

    image = np.asarray(Image.fromarray(scene[0]).resize((450, 300), Image.Resampling.NEAREST))
    segmenter = TextSegmenter(*sam_jax.load_model(), towers, options=PLAIN, points_per_side=12)
    records = segmenter.segment(image, ["the red square", "blue"])
    for name, x in (("the red square", 25), ("blue", 325)):
        best = next(record for record in records if record["text"] == name)
        truth = np.zeros((300, 450), bool)
        truth[50:150, x : x + 100] = True
        mask = decode_mask(best["segmentation"])
        assert (mask & truth).sum() / (mask | truth).sum() > 0.9
        assert best["score"] > 0.9
