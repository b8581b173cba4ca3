"""Texts over HTTP: what phrases name in an image, and texts as prompts of a model that was trained with them."""

import dataclasses

import numpy as np
import pytest

from sam_jax.config import ServingConfig, TextOptions
from sam_jax.inference.predictor import SamPredictor
from sam_jax.models.sam import Sam
from sam_jax.ops.rle import decode_mask
from sam_jax.serving.service import SegmentationService
from sam_jax.text.segmenter import TextSegmenter
from tests.predicting import H, W, make_image
from tests.serving.running import add, running
from tests.serving.test_serving import POINT, events_of
from tests.tiny import SMALLEST, TINY, random_variables
from tests.tiny_towers import TINY_CLIP, colour_towers, loaded

CONFIG = ServingConfig(port=0, max_batch=2)
EVERYTHING = {"points_per_side": 4, "pred_iou_thresh": 0, "stability_score_thresh": 0}
KNOWING = dataclasses.replace(SMALLEST, text_embed_dim=TINY_CLIP.embed_dim)


@pytest.fixture(scope="module")
def towers():
    return loaded(TINY_CLIP, colour_towers())


@pytest.fixture(scope="module")
def client(variables, towers):
    with running(Sam(TINY), variables, CONFIG, towers=towers) as server, server.client() as client:
        yield client


def find(client, name, **wanted):
    with client.stream("POST", f"/v1/images/{name}/text", json=EVERYTHING | wanted) as answer:
        assert answer.status_code == 200, answer.read()
        return list(events_of(answer.iter_lines()))


def test_phrases_find_what_the_segmenter_finds(client, variables, towers):
    assert client.get("/v1/model").json()["phrases"] is True
    name, phrases = add(client), ["a red thing", "green"]
    *progress, (kind, found) = find(client, name, phrases=phrases, threshold=0, masks_per_phrase=3)
    assert kind == "masks"
    assert [data for _, data in progress][-1] == {"done": 16, "total": 16}
    options = TextOptions(threshold=0, masks_per_phrase=3)
    segmenter = TextSegmenter(Sam(TINY), variables, towers, options=options, **EVERYTHING)
    expected = segmenter.segment(make_image(H, W), phrases)
    assert len(expected) >= 2
    assert [(one["text"], one["segmentation"]) for one in found["masks"]] == [
        (one["text"], one["segmentation"]) for one in expected
    ]
    np.testing.assert_allclose([one["score"] for one in found["masks"]], [one["score"] for one in expected], rtol=1e-5)
    # The image's masks are kept: the next phrase has nothing to wait for.
    again = find(client, name, phrases=["blue"], threshold=0)
    assert [kind for kind, _ in again] == ["masks"]
    assert {one["text"] for one in again[0][1]["masks"]} == {"blue"}


@pytest.mark.parametrize(
    ("phrases", "said"),
    [([], "phrases"), ([" "], "empty"), (["red"] * 17, "phrases"), (["red" * 400], "phrases"), ([3], "phrases")],
)
def test_what_is_no_phrase_is_refused(client, phrases, said):
    answer = client.post(f"/v1/images/{add(client)}/text", json={"phrases": phrases})
    assert answer.status_code == 422
    assert said in answer.json()["error"]
    assert client.post("/v1/images/nothing/text", json={"phrases": ["red"]}).status_code == 404


@pytest.mark.long
def test_a_text_is_a_prompt_of_a_model_that_knows_texts(towers):
    variables = random_variables(KNOWING)
    predictor = SamPredictor(Sam(KNOWING), variables)
    predictor.set_image(make_image(H, W))
    (embedding,) = towers.embed_texts(["a red thing"])
    point = {name: np.array(value) for name, value in POINT.items()}
    with running(Sam(KNOWING), variables, CONFIG, towers=towers) as server, server.client() as client:
        assert client.get("/v1/model").json()["text_prompts"] is True
        objects = [{"text": "a red thing"}, POINT | {"text": "a red thing"}, POINT]
        name = add(client)
        answer = client.post(f"/v1/images/{name}/masks", json={"objects": objects, "multimask_output": False})
        assert answer.status_code == 200, answer.text
        refused = client.post(f"/v1/images/{name}/masks", json={"objects": [{"text": " "}]})
        assert refused.status_code == 422
    given = [{"text_embedding": embedding}, point | {"text_embedding": embedding}, point]
    expected = [predictor.predict(**prompt, multimask_output=False) for prompt in given]
    found = [one["masks"][0] for one in answer.json()["objects"]]
    scores = [one.iou_predictions[0] for one in expected]
    np.testing.assert_allclose([one["predicted_iou"] for one in found], scores, atol=1e-5)
    assert len(set(np.round(scores, 4))) == 3
    for one, other in zip(found, expected, strict=True):
        assert (decode_mask(one["segmentation"]) == other.masks[0]).mean() > 0.99


def test_a_server_without_texts_says_so(variables, towers):
    with running(Sam(TINY), variables, CONFIG) as server, server.client() as client:
        assert client.get("/v1/model").json()["phrases"] is False
        name = add(client)
        for path, sent in (("text", {"phrases": ["red"]}), ("masks", {"objects": [{"text": "red"}]})):
            answer = client.post(f"/v1/images/{name}/{path}", json=sent)
            assert answer.status_code in (404, 422)
            assert "--text-model DIR" in answer.json()["error"]
    with pytest.raises(ValueError, match="gives 20 numbers, but odd was trained with 24"):
        SegmentationService(Sam(dataclasses.replace(SMALLEST, text_embed_dim=24)), {}, "odd", CONFIG, towers)


def test_a_model_without_text_prompts_says_where_phrases_are_found(client):
    answer = client.post(f"/v1/images/{add(client)}/masks", json={"objects": [{"text": "red"}]})
    assert answer.status_code == 422
    assert "/text finds phrases" in answer.json()["error"]
