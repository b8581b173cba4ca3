"""The contract over HTTP, through a real connection."""

import io
import uuid

import numpy as np
from PIL import Image

from sam_jax.ops.rle import decode_mask, encode_mask
from tests.engine.conftest import engine_running
from tests.engine.stores import SIZE, rectangle

MASK = encode_mask(rectangle(5, 5, 15, 20))
FIELDS = {
    *("key", "version", "state", "stage", "author", "name", "segmentation", "bbox", "area", "predicted_iou"),
    *("seconds", "corrections", "prominence"),
}


def claim(client, annotator="ada", **wanted):
    answer = client.post("/v1/engine/next", json={"annotator": annotator} | wanted)
    assert answer.status_code == 200, answer.text
    return answer.json()


def put(client, task, key=None, **fields):
    sent = {"annotator": "ada", "version": 0, "segmentation": MASK} | fields
    return client.put(f"/v1/engine/tasks/{task['task_id']}/masks/{key or uuid.uuid4()}", json=sent)


def test_a_model_that_waits_for_a_restart_is_named(client, store):
    store.promote(store.add_candidate("0001", None, store.present().id).id)
    about = client.get("/v1/engine").json()
    assert (about["model_version"], about["promoted"]) == ("vit_tiny", "0001")


def test_an_image_from_next_to_done(client, store):
    about = client.get("/v1/engine").json()
    assert {name: about[name] for name in ("stage", "images", "done", "open", "masks")} == {
        "stage": "assisted-manual",
        "images": 3,
        "done": 0,
        "open": 3,
        "masks": 0,
    }
    assert (about["model_version"], about["promoted"], about["hint_seconds"]) == ("vit_tiny", "vit_tiny", 30)
    assert set(about["statistics"].values()) == {None}
    task = claim(client)
    assert (task["stage"], task["masks"], task["lease_seconds"]) == ("assisted-manual", [], 600)
    assert task["image"] == {"id": 1, "file_name": "image_0.png", "size": list(SIZE)}
    content = client.get("/v1/engine/images/1/file")
    assert content.headers["content-type"] == "image/png"
    assert np.asarray(Image.open(io.BytesIO(content.content))).shape == (*SIZE, 3)
    embedded = client.post("/v1/images", content=content.content).json()  # as the page does
    assert embedded["size"] == task["image"]["size"]
    key = str(uuid.uuid4())
    first = put(
        client,
        task,
        key,
        name="a cup",
        prompts={"point_coords": [[10, 9.5]], "point_labels": [1], "box": None},
        corrections=2,
        seconds=7.5,
        proposal=encode_mask(rectangle(5, 5, 15, 25)),
        predicted_iou=0.8,
        prominence=0,
    )
    assert first.status_code == 200, first.text
    saved = first.json()
    assert saved.keys() == FIELDS
    assert (saved["version"], saved["state"], saved["area"], saved["bbox"]) == (1, "accepted", 150, [5, 5, 14, 9])
    assert np.array_equal(decode_mask(saved["segmentation"]), rectangle(5, 5, 15, 20))
    assert store.mask(key).proposal_iou == 0.75
    second = put(client, task, seconds=2.5).json()
    lease = client.post(f"/v1/engine/tasks/{task['task_id']}/renew", json={"annotator": "ada"})
    assert lease.json() == {"lease_seconds": 600}
    assert claim(client)["masks"] == [saved, second]
    done = {"annotator": "ada", "seconds": 20, "order": [second["key"], key]}
    answer = client.post(f"/v1/engine/tasks/{task['task_id']}/done", json=done)
    assert answer.json() == client.get("/v1/engine").json()
    assert answer.json()["statistics"] == {
        "masks_per_image": 2,
        "seconds_per_mask": 5,
        "share_new": None,
        "proposal_iou": 0.75,
    }
    assert [mask.key for mask in store.masks(1)] == [second["key"], key]
    assert store.mask(key).model_version == store.task(task["task_id"]).model_version == 1


def test_sending_twice_and_conflicts(client):
    task, key = claim(client), str(uuid.uuid4())
    first = put(client, task, key)
    again = put(client, task, key)
    assert (again.status_code, again.json()) == (200, first.json())
    other = put(client, task, key, segmentation=encode_mask(rectangle(0, 0, 4, 4)))
    assert other.status_code == 409
    assert other.json()["mask"] == first.json()
    assert "version 1" in other.json()["error"]
    never = put(client, task, version=5)
    assert (never.status_code, never.json()["mask"]) == (409, None)
    path = f"/v1/engine/tasks/{task['task_id']}/masks/{key}"
    assert client.delete(path, params={"annotator": "ada", "version": 3}).status_code == 409
    for _ in range(2):
        assert client.delete(path, params={"annotator": "ada", "version": 1}).status_code == 204
    assert claim(client)["masks"] == []
    assert put(client, task, key, version=2).json()["version"] == 3


def test_a_task_of_somebody_else(client, clock):
    task = claim(client)
    saved = put(client, task).json()
    path = f"/v1/engine/tasks/{task['task_id']}"
    bob = {"annotator": "bob"}
    answers = [
        put(client, task, annotator="bob"),
        client.delete(f"{path}/masks/{saved['key']}", params=bob | {"version": 1}),
        client.post(f"{path}/renew", json=bob),
        client.post(f"{path}/release", json=bob),
        client.post(f"{path}/done", json=bob),
        client.post("/v1/engine/next", json=bob | {"image_id": 1}),
    ]
    for answer in answers:
        assert (answer.status_code, answer.json()["annotator"]) == (409, "ada")
        assert "ada holds it" in answer.json()["error"]
    assert claim(client, "bob")["image"]["id"] == 2
    assert claim(client, "eve")["image"]["id"] == 3
    assert client.post("/v1/engine/next", json={"annotator": "zoe"}).status_code == 204
    clock.now += 601
    taken = claim(client, "zoe")
    assert (taken["task_id"], taken["masks"]) == (task["task_id"], [saved])
    assert client.post(f"{path}/release", json={"annotator": "zoe"}).status_code == 204
    assert claim(client, "ada", image_id=1)["task_id"] == task["task_id"]
    shared = claim(client, "zoe", image_id=1, shared=True)
    assert (shared["stage"], shared["masks"]) == ("repeat", [])


def test_an_image_that_was_passed_comes_later(client):
    first = claim(client)
    assert client.post(f"/v1/engine/tasks/{first['task_id']}/release", json={"annotator": "ada"}).status_code == 204
    assert claim(client, passed=[1])["image"]["id"] == 2
    assert client.post("/v1/engine/next", json={"annotator": "bob", "passed": [1, 3]}).status_code == 204
    assert claim(client, "bob")["image"]["id"] == 1


def test_what_is_no_mask_gets_422(client, store):
    task = claim(client)
    for fields, reason in [
        ({"segmentation": {"size": [40, 30], "counts": MASK["counts"]}}, "size"),
        ({"segmentation": {"size": list(SIZE), "counts": "04"}}, "1200"),
        ({"segmentation": {"size": list(SIZE), "counts": [1200]}}, "counts"),
        ({"segmentation": {"size": list(SIZE), "counts": "\u00e9"}}, "RLE"),
        ({"segmentation": encode_mask(np.zeros(SIZE, bool))}, "no pixel"),
        ({"proposal": {"size": list(SIZE), "counts": "04"}}, "1200"),
        ({"seconds": -1}, "seconds"),
        ({"name": ""}, "name"),
        ({"name": "two\nlines"}, "name"),
        ({"annotator": "  "}, "annotator"),
        ({"prompts": {"point_labels": [2]}}, "point_labels"),
        ({"colour": "red"}, "colour"),
    ]:
        answer = put(client, task, **fields)
        assert answer.status_code == 422, fields
        assert reason in answer.json()["error"]
    assert list(store.stream_masks()) == []


def test_what_is_not_there(client, store):
    task = claim(client)
    nobody = {"annotator": "ada"}
    assert put(client, task, "no-uuid").status_code == 422
    assert put(client, {"task_id": 99}).status_code == 404
    assert client.post("/v1/engine/tasks/99/done", json=nobody).status_code == 404
    assert client.get("/v1/engine/images/99/file").status_code == 404
    for path in ("../engine.sqlite", "%2e%2e%2fengine.sqlite", "1%2f..%2f..", "image_0.png"):
        answer = client.get(f"/v1/engine/images/{path}/file")
        assert answer.status_code in (404, 422)
    assert client.post("/v1/engine/next", json=nobody | {"image_id": 99}).status_code == 404
    store.image_path(store.image(1)).unlink()
    assert "put it back" in client.get("/v1/engine/images/1/file").json()["error"]


def test_the_token_is_asked_for_and_stages_are_kept_apart(store, variables):
    with (
        engine_running(store, variables, "semi-automatic", token="secret") as server,
        server.client() as client,
    ):
        assert client.get("/v1/engine").status_code == 401
        client.headers["Authorization"] = "Bearer secret"
        assert client.get("/v1/engine").status_code == 200
        assert client.post("/v1/engine/next", json={"annotator": "ada"}).status_code == 204
        assert store.fill_image(2, [], "semi-automatic", 1)
        assert claim(client)["image"]["id"] == 2
        assert "/v1/engine/next" in client.get("/v1/openapi.json").json()["paths"]


def test_a_store_that_cannot_be_written_says_so(client, store, monkeypatch):
    import sqlite3

    task = claim(client)

    def full(*_):
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(type(store), "save_mask", full)
    answer = put(client, task)
    assert answer.status_code == 503
    assert "disk is full" in answer.json()["error"]
