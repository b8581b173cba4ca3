"""gs:// from end to end, against an emulator of Cloud Storage on this machine: train, resume, infer."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from http import HTTPStatus
from pathlib import Path

import pytest

from tests.tiny_sa1b import tiny_files, write_tar

os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"  # else it asks, for minutes, what kind of bucket this is
gcsfs = pytest.importorskip("gcsfs")
emulator = pytest.importorskip("gcp_storage_emulator.server")
objects = pytest.importorskip("gcp_storage_emulator.handlers.objects")
NotFound = objects.NotFound

pytestmark = [pytest.mark.oracle, pytest.mark.slow]
ROOT = Path(__file__).parents[1]
BUCKET = "gs://bucket"
CONFIG = """
from sam_jax.config import *
from tests.tiny import SMALLEST

def get_config():
    return TrainConfig(
        sam=SMALLEST,
        stages=(StageConfig(48, 8, 2, num_steps=12),),
        data=RecordDataConfig("gs://bucket/sa1b", hold_out=0.3),
        interaction=InteractionConfig(num_points=1, num_mask_only_steps=1),
        optim=OptimConfig(learning_rate=1e-3, warmup_steps=2),
        checkpoint_every=6,
        eval_every=6,
        eval_images=8,
        picture_every=6,
        log_every=1,
    )
"""


def _download(request, response, storage, *args, **kwargs):
    with contextlib.suppress(NotFound):
        found = storage.get_file_obj(request.params["bucket_name"], request.params["object_id"])
        response["x-goog-generation"] = found["generation"]
    return emulated_download(request, response, storage, *args, **kwargs)


def _move(request, response, storage, *args, **kwargs):
    request.params["dest_bucket_name"] = request.params["bucket_name"]
    objects.copy(request, response, storage)
    if response.status == HTTPStatus.OK:
        storage.delete_file(request.params["bucket_name"], request.params["object_id"])


# What the emulator lacks of the service: generations of what is downloaded, and moves.
emulated_download = objects.download
MOVE = (
    r"^/storage/v1/b/(?P<bucket_name>[-.\w]+)/o/(?P<object_id>.+)/moveTo/o/(?P<dest_object_id>.+)$",
    {"POST": _move},
)


@pytest.fixture(scope="module")
def bucket():
    """The file system of an empty bucket, which subprocesses reach, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(objects, "download", _download)
        patch.setattr(emulator, "HANDLERS", (MOVE, *emulator.HANDLERS))
        server = emulator.create_server("localhost", 0, in_memory=True, default_bucket="bucket")
        server.start()
        url = f"http://localhost:{server._api._httpd.server_port}"
        patch.setenv("STORAGE_EMULATOR_HOST", url)
        patch.setenv("TENSORSTORE_GCS_HTTP_URL", url)
        yield gcsfs.GCSFileSystem(endpoint_url=url, token="anon")
        server.stop()


@pytest.fixture(scope="module")
def trained(bucket, tmp_path_factory):
    """Where the model of a run is that was stopped by SIGTERM and gone on with; its tar lies in the bucket, too."""
    directory = tmp_path_factory.mktemp("local")
    bucket.put(str(write_tar(directory / "sa_000000.tar", 16)), "bucket/sa1b/sa_000000.tar")
    (directory / "tiny_config.py").write_text(CONFIG)
    arguments = ["train.py", str(directory / "tiny_config.py"), "--workdir", f"{BUCKET}/run"]
    first = subprocess.Popen([sys.executable, *arguments], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 200
    while not bucket.exists("bucket/run/log.jsonl") and first.poll() is None and time.monotonic() < deadline:
        time.sleep(0.2)
        bucket.invalidate_cache()
    first.send_signal(signal.SIGTERM)
    log = first.communicate(timeout=100)[1]
    assert first.returncode == 75, log[-3000:]
    second = run(*arguments)
    assert second.returncode == 0, second.stderr[-3000:]
    return f"{BUCKET}/run/model"


def run(*arguments):
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=300
    )


def test_a_run_in_a_bucket_goes_on_where_it_was(bucket, trained):
    rows = [json.loads(line) for line in bucket.cat("bucket/run/log.jsonl").splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, 13))
    assert not (ROOT / "gs:").exists()


def test_photos_and_results_in_a_bucket(bucket, trained):
    for name, content in tiny_files(3):
        if name.endswith(".jpg"):
            bucket.pipe(f"bucket/photos/{name}", content)
    arguments = ["infer.py", f"{BUCKET}/photos", "--checkpoint", trained, "--out", f"{BUCKET}/masks"]
    done = run(*arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    written = {name.rpartition("/")[2] for name in bucket.ls("bucket/masks")}
    assert {"sa_1.json", "sa_2.json", "sa_3.json"} <= written
    again = run(*arguments)
    assert again.returncode == 0, again.stderr[-3000:]
    assert "finished before: 3" in again.stdout + again.stderr
    assert not (ROOT / "gs:").exists()
