"""gs:// from end to end, against an emulator of Cloud Storage on this machine: train, resume, infer."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.tiny_sa1b import tiny_files, write_tar

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
        overlay_every=6,
        log_every=1,
    )
"""


@pytest.fixture(scope="module")
def bucket():
    """The file system of an empty bucket, which subprocesses reach, too."""
    from tests.cloud_storage import emulated_bucket

    with emulated_bucket() as files:
        yield files


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


def test_images_and_results_in_a_bucket(bucket, trained):
    for name, content in tiny_files(3):
        if name.endswith(".jpg"):
            bucket.pipe(f"bucket/images/{name}", content)
    arguments = ["infer.py", f"{BUCKET}/images", "--checkpoint", trained, "--out", f"{BUCKET}/masks"]
    done = run(*arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    written = {name.rpartition("/")[2] for name in bucket.ls("bucket/masks")}
    assert {"sa_1.json", "sa_2.json", "sa_3.json"} <= written
    again = run(*arguments)
    assert again.returncode == 0, again.stderr[-3000:]
    assert "already finished: 3" in again.stdout + again.stderr
    assert not (ROOT / "gs:").exists()
