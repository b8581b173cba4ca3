"""What a client sends and gets, through a real connection; masks are those of SamPredictor."""

import base64
import io
import json
import socket
import threading

import httpx
import numpy as np
import pytest
from PIL import Image

from sam_jax.config import ServingConfig
from sam_jax.inference.automatic_mask_generator import SamAutomaticMaskGenerator
from sam_jax.inference.predictor import SamPredictor
from sam_jax.ops.rle import decode_mask
from tests.predicting import H, W, boxes, logits, make_image, points
from tests.serving.running import add, image_file, logits_of, png, running

POINT = {"point_coords": [[30, 20]], "point_labels": [1]}


@pytest.fixture(scope="module")
def predictor(crf_model, variables):
    predictor = SamPredictor(crf_model, variables)
    predictor.set_image(make_image(H, W))
    return predictor


def as_json(prompt):
    """The arguments of SamPredictor.predict as a client sends them."""
    sent = {name: value.tolist() for name, value in prompt.items() if name != "mask_input"}
    if "mask_input" in prompt:
        sent["mask_input"] = base64.b64encode(prompt["mask_input"].astype("<f4").tobytes()).decode()
    return sent


def one_of(batch):
    return batch[0]


PROMPTS = {
    "a point": dict(zip(("point_coords", "point_labels"), map(one_of, points(1, 1)), strict=True)),
    "points": dict(zip(("point_coords", "point_labels"), map(one_of, points(1, 5)), strict=True)),
    "a box": {"box": boxes(1)[0]},
    "a mask": {"mask_input": logits(1)[0]},
}
PROMPTS["all"] = PROMPTS["points"] | PROMPTS["a box"] | PROMPTS["a mask"]


@pytest.mark.parametrize("multimask_output", [True, False])
@pytest.mark.parametrize("kind", PROMPTS)
def test_masks_are_those_of_the_predictor(client, predictor, kind, multimask_output):
    wanted = {"objects": [as_json(PROMPTS[kind])], "multimask_output": multimask_output, "low_res_masks": True}
    answer = client.post(f"/v1/images/{add(client)}/masks", json=wanted)
    assert answer.status_code == 200, answer.text
    assert answer.json()["size"] == [H, W]
    (found,) = answer.json()["objects"]
    expected = predictor.predict(**PROMPTS[kind], multimask_output=multimask_output)
    surely = abs(predictor.predict(**PROMPTS[kind], multimask_output=multimask_output, return_logits=True).masks) > 1e-3
    assert len(found["masks"]) == len(expected.masks)
    for number, mask in enumerate(found["masks"]):
        pixels = decode_mask(mask["segmentation"])
        np.testing.assert_array_equal(pixels[surely[number]], expected.masks[number][surely[number]])
        assert mask["area"] == pixels.sum()
        np.testing.assert_allclose(mask["predicted_iou"], expected.iou_predictions[number], atol=1e-5)
        np.testing.assert_allclose(logits_of(mask["low_res_mask"]), expected.low_res_masks[number], atol=1e-4)


def test_several_objects_are_each_what_they_are_alone(client, predictor):
    kinds = ["a point", "a box", "points", "all", "a mask"] * 3
    wanted = {"objects": [as_json(PROMPTS[kind]) for kind in kinds], "multimask_output": False, "format": "png"}
    found = client.post(f"/v1/images/{add(client)}/masks", json=wanted).json()["objects"]
    for kind, one in zip(kinds, found, strict=True):
        image = Image.open(io.BytesIO(base64.b64decode(one["masks"][0]["segmentation"])))
        expected = predictor.predict(**PROMPTS[kind], multimask_output=False, return_logits=True).masks[0]
        surely = abs(expected) > 1e-3
        np.testing.assert_array_equal(np.asarray(image, bool)[surely], (expected > 0)[surely])


def test_users_at_once_are_decoded_together(server, predictor):
    def counted(what):
        return server.service.metrics.registry.get_sample_value(f"sam_jax_decoder_batch_size_{what}")

    before = counted("sum"), counted("count")
    barrier, answers = threading.Barrier(12), {}

    def user(number):
        with server.client() as client:
            name = add(client)
            barrier.wait()
            for _ in range(3):
                answers[number] = client.post(f"/v1/images/{name}/masks", json={"objects": [as_json(PROMPTS["all"])]})

    threads = [threading.Thread(target=user, args=[number]) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = predictor.predict(**PROMPTS["all"])
    for answer in answers.values():
        for number, mask in enumerate(answer.json()["objects"][0]["masks"]):
            assert (decode_mask(mask["segmentation"]) == expected.masks[number]).mean() > 0.999
    assert counted("sum") - before[0] == 36
    assert counted("count") - before[1] < 36


def test_an_image_is_turned_upright(client):
    image = make_image(40, 60)
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    answer = client.post("/v1/images", content=png(image, exif=exif)).json()
    assert answer["size"] == [60, 40]
    assert answer["input_size"] == [80, 53]


def test_the_embedding_is_the_models(client, predictor):
    answer = client.post("/v1/images", content=image_file(), headers={"Accept": "application/octet-stream"})
    assert answer.status_code == 201
    shape = [int(side) for side in answer.headers["X-Embedding-Shape"].split(",")]
    found = np.frombuffer(answer.content, "<f2").reshape(shape)
    np.testing.assert_allclose(found, predictor.get_image_embedding(), rtol=2e-3, atol=2e-3)
    again = client.get(f"{answer.headers['Location']}/embedding")
    assert again.content == answer.content
    assert answer.headers["X-Size"] == f"{H},{W}"


def events_of(lines):
    name = None
    for line in lines:
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield name, json.loads(line.removeprefix("data: "))


EVERYTHING = {"points_per_side": 8, "pred_iou_thresh": 0, "stability_score_thresh": 0}


def test_everything_tells_of_its_progress_and_finds_what_the_generator_finds(client, crf_model, variables):
    with client.stream("POST", f"/v1/images/{add(client)}/everything", json=EVERYTHING) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = list(events_of(answer.iter_lines()))
    kinds = [kind for kind, _ in events]
    assert kinds == ["progress"] * (len(events) - 1) + ["masks"]
    assert events[-2][1] == {"done": 64, "total": 64}
    expected = SamAutomaticMaskGenerator(crf_model, variables, output_mode="coco_rle", **EVERYTHING).generate(
        make_image(H, W)
    )
    assert [one["segmentation"] for one in events[-1][1]["masks"]] == [one["segmentation"] for one in expected]


def test_everything_ends_when_its_client_goes(server, client):
    """Many points, of which the client sees the first batch."""
    name = add(client)
    with client.stream(
        "POST", f"/v1/images/{name}/everything", json={"points_per_side": 64, "crop_n_layers": 1}
    ) as answer:
        next(events_of(answer.iter_lines()))
    done = {"points_per_side": 1}
    with client.stream("POST", f"/v1/images/{name}/everything", json=done, timeout=600) as answer:
        assert [kind for kind, _ in events_of(answer.iter_lines())][-1] == "masks"  # waits for the first to end


def test_old_images_make_room(crf_model, variables):
    with (
        running(crf_model, variables, ServingConfig(port=0, max_batch=2, cache_megabytes=1)) as server,
        server.client() as client,
    ):
        names = [add(client) for _ in range(8)]
        status = [client.post(f"/v1/images/{name}/masks", json={"objects": [POINT]}).status_code for name in names]
        assert status[-1] == 200
        assert status[0] == 404
        assert server.service.images.num_bytes <= 1_000_000
        assert client.delete(f"/v1/images/{names[-1]}").status_code == 204
        assert client.delete(f"/v1/images/{names[-1]}").status_code == 404


def test_a_token_is_needed_where_there_is_one(crf_model, variables):
    config = ServingConfig(port=0, max_batch=2, token="sésame", cors=("https://a.example",))
    with running(crf_model, variables, config) as server, server.client() as client:
        assert client.get("/v1/health").status_code == 200
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "sésame".encode()}):
            for path in ("/v1/model", "/metrics"):
                answer = client.get(path, headers=headers)
                assert answer.status_code == 401
                assert "Bearer TOKEN" in answer.json()["error"]
        right = {"Authorization": "Bearer sésame".encode()}
        assert client.get("/v1/model", headers=right).json()["image_size"] == 80
        asked = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
        assert client.options("/v1/images", headers=asked).headers["Access-Control-Allow-Origin"] == asked["Origin"]
        other = client.options("/v1/images", headers=asked | {"Origin": "https://b.example"})
        assert "Access-Control-Allow-Origin" not in other.headers


def test_no_other_origin_may_ask_by_default(client):
    answer = client.get("/v1/health", headers={"Origin": "https://a.example"})
    assert "Access-Control-Allow-Origin" not in answer.headers


@pytest.mark.parametrize(("limit", "status"), [("max_requests", 503), ("max_requests_per_client", 429)])
def test_too_many_are_told_to_come_again(crf_model, variables, limit, status):
    """One request at a time, and it hangs: its body does not end, until the server has waited long enough."""
    config = ServingConfig(port=0, request_seconds=5, **{limit: 1})
    with running(crf_model, variables, config) as server, server.client() as client:
        with socket.create_connection((client.base_url.host, client.base_url.port)) as slow:
            slow.sendall(b"POST /v1/images HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nabc")
            while client.get("/v1/health").json()["requests"] < 2:
                pass
            answer = client.get("/v1/model")
            assert (answer.status_code, answer.headers.get("Retry-After")) == (status, "1")
            assert len(answer.json()["error"].splitlines()) == 1
            assert b" 408 " in slow.recv(1000).split(b"\r\n")[0]
        assert client.get("/v1/model").status_code == 200


def test_metrics_count_what_was_asked(client):
    client.get("/v1/nothing")
    client.post(f"/v1/images/{add(client)}/masks", json={"objects": [POINT]})
    text = client.get("/metrics").text
    assert 'sam_jax_requests_total{route="/v1/images/{image_id}/masks",status="200"}' in text
    assert 'sam_jax_requests_total{route="other",status="404"}' in text
    assert "sam_jax_decoder_batch_size_bucket" in text


def test_a_page_is_served_where_there_is_one(crf_model, variables, tmp_path):
    (tmp_path / "index.html").write_text("<h1>page</h1>")
    config = ServingConfig(port=0, max_batch=2)
    with running(crf_model, variables, config, static=tmp_path) as server, server.client() as client:
        answer = client.get("/")
        assert answer.text == "<h1>page</h1>"
        assert answer.headers["Cross-Origin-Embedder-Policy"] == "require-corp"
        assert client.get("/v1/health").json()["status"] == "ok"
    with running(crf_model, variables, config, static=tmp_path / "none") as server:
        assert "openapi.json" in httpx.get(server.url, trust_env=False).text


def test_openapi_describes_every_route(client):
    paths = client.get("/v1/openapi.json").json()["paths"]
    assert set(paths) >= {"/v1/images", "/v1/images/{image_id}/masks", "/v1/images/{image_id}/everything", "/v1/health"}
    for path in paths.values():
        for operation in path.values():
            assert operation["description"]
            assert "4XX" in operation["responses"]
