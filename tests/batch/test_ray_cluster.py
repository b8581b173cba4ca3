"""Many images on a Ray cluster: hosts that die, images that kill, and the same files as without Ray."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from PIL import Image

from sam_jax.batch.image_list import find_images
from sam_jax.batch.ray_cluster import run_on_cluster
from sam_jax.batch.ray_driver import ClusterOptions, WorkerJob, worker_resources
from sam_jax.batch.result_files import ResultFiles
from sam_jax.batch.run import RunOptions
from sam_jax.cli import infer
from tests.guides import ROOT
from tests.predicting import make_image

OPTIONS = ["--points-per-side", "4", "--pred-iou-thresh", "0", "--stability-score-thresh", "0"]


def test_what_a_worker_takes():
    tpus = [{"CPU": 8.0, "TPU": 4.0}, {"CPU": 8.0, "TPU": 4.0}, {"CPU": 2.0}]
    assert worker_resources(tpus, None) == {"TPU": 4}
    assert worker_resources([{"CPU": 8.0, "GPU": 2.0}], None) == {"GPU": 2}
    assert worker_resources([{"CPU": 8.0}, {"CPU": 4.0}], None) == {"CPU": 7}
    assert worker_resources([{"CPU": 1.0}], None) == {"CPU": 1}
    assert worker_resources(tpus, {"CPU": 3}) == {"CPU": 3}
    with pytest.raises(ValueError, match=r"no host of the cluster has TPU 8; .* --ray-resources CPU=2"):
        worker_resources(tpus, {"TPU": 8})


def test_options_are_checked():
    with pytest.raises(ValueError, match="1 or more, not 0"):
        ClusterOptions(workers=0)
    with pytest.raises(ValueError, match="resource TPU must be more than 0, not -1"):
        ClusterOptions(resources={"TPU": -1})


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--ray", "auto", "--num-hosts", "2", "--host", "0"], "--num-hosts does not go with --ray"),
        (["--ray-workers", "2"], "--ray-workers goes with --ray"),
        (["--ray", "auto", "--point", "1,2"], "--ray does not go with --point"),
        (["--ray", "auto", "--ray-resources", "4"], "'4' is not of the form NAME=N, such as TPU=4"),
        (["--ray", "auto"], "pip install 'sam_jax[ray]'"),
    ],
)
def test_what_is_wrong_is_said(words, said, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    Image.fromarray(make_image(20, 30)).save(tmp_path / "a.png")
    assert infer.main([str(tmp_path / "a.png"), "--out", str(tmp_path / "out"), *words]) == 2
    assert said in capsys.readouterr().err


class Hosts:
    """A cluster of two hosts with two CPUs each, in a process of its own."""

    def __init__(self):
        # Without the eight devices of other tests, each of which would compile for itself.
        env = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
        command = [sys.executable, str(ROOT / "tests/ray_hosts.py"), "2"]
        self._process = subprocess.Popen(
            command, env=env | {"PYTHONPATH": str(ROOT)}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.address = self._process.stdout.readline().strip()

    def kill_one(self):
        """Ends a host and all that runs on it, at once."""
        print("kill", file=self._process.stdin, flush=True)
        assert self._process.stdout.readline() == "killed\n"

    def stop(self):
        self._process.communicate(timeout=60)


@pytest.fixture
def cluster():
    hosts = Hosts()
    yield hosts
    hosts.stop()


@pytest.fixture
def images(request, tmp_path):
    """So many images, one of them broken."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(getattr(request, "param", 40)):
        Image.fromarray(make_image(40 + number % 3, 60, number)).save(folder / f"{number:03}.png")
    (folder / "017.png").write_bytes(b"no image")
    return folder


def results(folder):
    return {path.name: json.loads(path.read_text())["annotations"] for path in folder.glob("[0-9]*.json")}


@pytest.mark.slow
@pytest.mark.parametrize("images", [40, 300], indirect=True)
def test_a_host_dies_and_every_image_is_there_once(cluster, images, tmp_path, checkpoint, capsys, monkeypatch):
    """The command on a cluster of which a host is killed midway, beside the command without one."""
    monkeypatch.chdir(tmp_path)
    count = len(list(images.iterdir()))
    words = ["images", "--checkpoint", os.path.relpath(checkpoint, tmp_path), *OPTIONS]
    assert infer.main([*words, "--out", "alone", "--format", "coco"]) == 1
    killed = threading.Event()

    def kill_one():
        while len(list((tmp_path / "many").glob("*.json"))) < count // 6:
            time.sleep(0.05)
        cluster.kill_one()
        killed.set()

    threading.Thread(target=kill_one, daemon=True).start()
    ray = ["--ray", cluster.address, "--ray-resources", "CPU=2"]
    assert infer.main([*words, "--out", "many", "--format", "coco", *ray]) == 1
    assert killed.is_set()
    said = capsys.readouterr().out
    assert "017.png" in said
    alone, many = results(tmp_path / "alone"), results(tmp_path / "many")
    assert len(many) == count - 1
    assert many == alone
    assert json.loads((tmp_path / "many/coco_results.json").read_text()) == json.loads(
        (tmp_path / "alone/coco_results.json").read_text()
    )
    assert json.loads((tmp_path / "many/failures.jsonl").read_text())["image"].endswith("017.png")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "many").glob("[0-9]*.json")}
    assert infer.main([*words, "--out", "many", "--format", "coco", *ray]) == 1
    assert f"already finished: {count - 1}" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in before}


class Deadly:
    """A segmenter that ends its process where an image is all black."""

    def find(self, image, objects):
        if not image.any():
            os.kill(os.getpid(), signal.SIGKILL)
        return image

    def records(self, found, size):
        return []

    def on_device(self, device):
        return self


class Wrong(Deadly):
    """One whose model cannot be loaded."""

    def __init__(self):
        raise ValueError("no such checkpoint: nowhere")


def run(cluster, folder, out, build):
    files = ResultFiles(out, ["json"], {})
    job = WorkerJob(build, str(out), ("json",), {}, None, RunOptions(workers=1))
    options = ClusterOptions(cluster.address, {"CPU": 1})
    return run_on_cluster(find_images([str(folder)]), job, files, options)


@pytest.mark.slow
def test_an_image_that_kills_its_workers_is_one_failure(cluster, images, tmp_path):
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(images / "005.png")
    summary = run(cluster, images, tmp_path / "out", Deadly)
    assert {file.path.rpartition("/")[2] for file, _ in summary.failures} == {"005.png", "017.png"}
    assert any("3 workers died that had it" in error for _, error in summary.failures)
    assert len(list((tmp_path / "out").glob("0*.json"))) == summary.done + summary.skipped == 38


def kill_drivers(until, most):
    """Ends the process with Ray as a crash of its library would, once `until()` holds, and `most` times."""

    def work():
        killed = set()
        while len(killed) < most:
            for process in multiprocessing.active_children():
                if process.pid not in killed and until():
                    os.kill(process.pid, signal.SIGSEGV)
                    killed.add(process.pid)
            time.sleep(0.01)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


@pytest.mark.slow
def test_a_crash_of_ray_costs_no_image(cluster, images, tmp_path):
    out = tmp_path / "out"
    killer = kill_drivers(lambda: len(list(out.glob("0*.json"))) > 10, most=2)
    summary = run(cluster, images, out, Deadly)
    killer.join(1)
    assert not killer.is_alive()
    assert [file.path.rpartition("/")[2] for file, _ in summary.failures] == ["017.png"]
    assert summary.done + summary.skipped == len(list(out.glob("0*.json"))) == 39


@pytest.mark.slow
def test_ray_that_only_crashes_ends_the_run(cluster, images, tmp_path):
    kill_drivers(lambda: True, most=3)
    with pytest.raises(RuntimeError, match=r"Ray's process ended 3 times before any answer; the last time by SIGSEGV"):
        run(cluster, images, tmp_path / "out", Deadly)


@pytest.mark.slow
def test_what_workers_cannot_load_is_said(cluster, images, tmp_path):
    with pytest.raises(ValueError, match="no such checkpoint: nowhere"):
        run(cluster, images, tmp_path / "out", Wrong)


@pytest.mark.slow
@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "nonsense"])
def test_a_cluster_that_is_not_there(address, tmp_path, capsys):
    Image.fromarray(make_image(20, 30)).save(tmp_path / "a.png")
    assert infer.main([str(tmp_path / "a.png"), "--out", str(tmp_path / "out"), "--ray", address]) == 2
    assert f"no Ray cluster at '{address}'" in capsys.readouterr().err
