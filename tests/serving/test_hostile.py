"""Requests that nobody means well: each is refused in one line, with a status of 4xx, and the server goes on."""

import json
import socket
import struct
import zlib

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.predicting import make_image
from tests.serving.running import add, image_file, png

FILE = image_file()
SETTINGS = {"deadline": None, "database": None, "derandomize": True, "suppress_health_check": list(HealthCheck)}


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def bomb(width, height):
    """A PNG that is small as a file and large as an image."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return SIGNATURE + chunk(b"IHDR", header) + chunk(b"IDAT", ZEROS) + chunk(b"IEND", b"")


numbers = st.one_of(st.integers(), st.floats(), st.just(10**400), st.text(max_size=5), st.none(), st.booleans())
anything = st.recursive(
    st.one_of(numbers, st.text(max_size=20)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)),
    max_leaves=12,
)
ZEROS = zlib.compress(b"\0" * 10**6)
SIGNATURE = b"\x89PNG\r\n\x1a\n"
far = st.one_of(
    st.floats(min_value=1e3), st.floats(max_value=-1e-3), st.just(float("nan")), st.integers(min_value=10**6)
)
objects = st.one_of(
    st.fixed_dictionaries(
        {"point_coords": st.lists(st.tuples(far, far), min_size=1, max_size=3), "point_labels": anything}
    ),
    st.fixed_dictionaries({"point_coords": st.tuples(st.tuples(far, far)), "point_labels": st.just([1])}),
    st.fixed_dictionaries({"point_coords": anything}),
    st.fixed_dictionaries({"box": st.tuples(far, far, far, far)}),
    st.fixed_dictionaries({"mask_input": st.text(min_size=1)}),
    st.just({}),
    st.fixed_dictionaries({"path": st.just("/etc/passwd")}),
)
bodies = st.one_of(
    st.binary(max_size=200),
    st.just(b"[" * 100_000),
    st.just(b'{"objects": [{"box": [1e999, 0, 1, 1]}]}'),
    anything.map(lambda value: json.dumps(value).encode()),
    st.lists(objects, max_size=3).map(lambda value: json.dumps({"objects": value}).encode()),
    st.just(json.dumps({"objects": [{"box": [1, 1, 5, 5]}] * 65}).encode()),
    st.just(json.dumps({"objects": [{"box": [1, 1, 5, 5]}], "format": "../../x"}).encode()),
)
images = st.one_of(
    st.binary(max_size=300),
    st.integers(8, len(FILE) - 200).map(lambda end: FILE[:end]),
    st.tuples(st.integers(2000, 2**31 - 1), st.integers(2000, 2**31 - 1)).map(lambda size: bomb(*size)),
    st.just(SIGNATURE + chunk(b"IHDR", struct.pack(">IIBBBBB", 0, 0, 8, 2, 0, 0, 0))),
    st.just(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"),
    st.just(b"P6 100000 100000 255\n"),
    st.just(b"0" * 600_000),
)
names = st.one_of(
    st.sampled_from(
        ["..", "../../etc/passwd", "%2e%2e%2f%2e%2e%2fetc%2fpasswd", "a%00b", "0", "x" * 5000, "%ff", "..%5c"]
    ),
    st.text(st.characters(codec="ascii", exclude_characters="/?#\r\n\t\0\\"), min_size=1, max_size=30).filter(
        str.strip
    ),
)
routes = st.sampled_from(["masks", "everything", "embedding", "", "../../metrics/x"])


def check_refused(answer):
    assert 400 <= answer.status_code < 500, (answer.status_code, answer.text[:200])
    reason = answer.json()["error"]
    assert reason
    assert len(reason.splitlines()) == 1
    assert len(reason) <= 300
    assert "Traceback" not in reason


@pytest.fixture(scope="module")
def own(server):
    """A client and an image of its own, which lives through everything."""
    with server.client() as client:
        yield client, add(client)


@pytest.mark.long
@settings(max_examples=350, **SETTINGS)
@given(body=bodies, route=st.sampled_from(["masks", "everything"]))
def test_json(own, body, route):
    client, name = own
    headers = {"Content-Type": "application/json"}
    if route == "everything":
        try:  # an empty object means all defaults, and so may others be meant
            value = json.loads(body)
        except (ValueError, RecursionError):
            value = None
        if value == {}:
            return
    check_refused(client.post(f"/v1/images/{name}/{route}", content=body, headers=headers))


@settings(max_examples=350, **SETTINGS)
@given(content=images)
def test_images(own, content):
    check_refused(own[0].post("/v1/images", content=content))


@settings(max_examples=300, **SETTINGS)
@given(name=names, route=routes, method=st.sampled_from(["GET", "POST", "DELETE", "PUT"]))
def test_paths(own, name, route, method):
    try:
        url = httpx.URL(f"/v1/images/{name}/{route}")
    except httpx.InvalidURL:
        return
    content = json.dumps({"objects": [{"box": [1, 1, 5, 5]}]}) if method in ("POST", "PUT") else None
    headers = {"Content-Type": "application/json"} if content else {}
    answer = own[0].request(method, url, content=content, headers=headers)
    if method == "GET" and answer.request.url.path in ("/", "/metrics"):  # what the client made of the path itself
        return
    check_refused(answer)


@pytest.mark.parametrize("file", ["passwd", "..%2f..%2fpyproject.toml", "decoder.onnx"])
def test_files(own, file):
    check_refused(own[0].get(f"/v1/model/{file}"))


def test_a_body_that_says_it_is_huge(own):
    """By a socket: no client library lies like this."""
    with socket.create_connection((own[0].base_url.host, own[0].base_url.port)) as connection:
        connection.sendall(b"POST /v1/images HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000000\r\n\r\n")
        assert b" 413 " in connection.recv(1000).split(b"\r\n")[0]


def test_what_is_too_large_is_told_the_limit(own):
    answer = own[0].post("/v1/images", content=png(make_image(900, 1200)))
    assert answer.status_code == 413
    assert "0.5 MB" in answer.json()["error"]
    answer = own[0].post("/v1/images", content=png(np.zeros((2000, 2000, 3), np.uint8)))
    assert answer.status_code == 422
    assert "2000x2000 = 4,000,000 pixels" in answer.json()["error"]


def test_the_server_is_as_it_was(own):
    """Runs last: the image is still there, and good requests are answered."""
    client, name = own
    assert client.get("/v1/health").json()["requests"] == 1
    answer = client.post(f"/v1/images/{name}/masks", json={"objects": [{"box": [10, 10, 50, 40]}]})
    assert answer.status_code == 200
    assert len(answer.json()["objects"][0]["masks"]) == 3
