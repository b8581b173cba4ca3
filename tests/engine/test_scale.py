"""Large stores: the next image comes at once, and exports take no more memory."""

import json
import os
import statistics
import subprocess
import sys
import time
import tracemalloc
import uuid
from pathlib import Path

import numpy as np
import pytest

from sam_jax.config import EngineConfig
from sam_jax.engine.exports import export_store
from sam_jax.engine.store import Store, init_store
from sam_jax.ops.rle import encode_mask
from tests.engine.stores import draft

ROOT = Path(__file__).parents[2]
SIZE = (300, 400)
LIMIT = 0.05  # seconds


def shapes(count=50):
    """Run lengths of ellipses, of an ordinary length."""
    rng, (rows, columns) = np.random.default_rng(0), np.mgrid[: SIZE[0], : SIZE[1]]
    found = []
    for _ in range(count):
        y, x, height, width = rng.uniform((50, 50, 20, 20), (250, 350, 90, 90))
        found.append(encode_mask(((rows - y) / height) ** 2 + ((columns - x) / width) ** 2 < 1)["counts"])
    return found


def make_large(directory, images, masks, done=0.5):
    """A store of images of which a share is labelled, without their files."""
    counts = shapes()
    with init_store(directory, EngineConfig(hold_out=0.1)) as store, store.transaction() as connection:
        connection.executemany(
            "INSERT INTO images VALUES (?, ?, ?, ?, ?, ?, 0)",
            ((n, f"image_{n}.jpg", *SIZE, f"{n:064d}", n % 10 == 0) for n in range(1, images + 1)),
        )
        connection.executemany(
            "INSERT INTO tasks (image_id, stage, state, annotator) VALUES (?, 'assisted-manual', ?, ?)",
            ((n, *(("done", "ada") if n <= done * images else ("open", None))) for n in range(1, images + 1)),
        )
        connection.executemany(
            """INSERT INTO masks (key, image_id, task_id, stage, state, from_model, author, model_version, counts, area,
                bbox, corrections, seconds, proposal, proposal_iou, created_at, updated_at)
                VALUES (?, ?, ?, 'assisted-manual', 'accepted', 0, 'ada', 1, ?, 9000, '[5, 5, 9, 9]', 1, 9.5, ?, 0.9,
                0, 0)""",
            (
                (str(uuid.UUID(int=n << 32 | m)), n, n, counts[(n + m) % 50], counts[m % 50])
                for n in range(1, images + 1)
                for m in range(masks)
            ),
        )


def seconds_for(work, times=20):
    """The median, and the longest but one: other programs run on this machine, too."""
    found = []
    for number in range(times):
        start = time.perf_counter()
        work(number)
        found.append(time.perf_counter() - start)
    return statistics.median(found), sorted(found)[-2]


def time_store(store):
    """Seconds of what annotators wait for."""

    def next_image(number):
        task = store.claim_next(f"annotator {number}")
        return store.image(task.image_id), store.task_masks(task)

    task = store.claim_next("ada")
    times = {
        "next": seconds_for(next_image),
        "next of a stage": seconds_for(lambda n: store.claim_next(f"other {n}", stage="assisted-manual")),
        "save": seconds_for(lambda _: store.save_mask(task.id, "ada", draft(np.ones(SIZE, bool)), 0)),
        "statistics": seconds_for(lambda _: store.statistics()),
        "rounds": seconds_for(lambda _: store.round_statistics()),
    }
    store.release(task.id, "ada")
    return times


def test_the_next_image_comes_at_once(tmp_path):
    make_large(tmp_path / "store", 1000, 20)
    with Store(tmp_path / "store") as store:
        times = time_store(store)
        assert times["next"][0] < LIMIT
        assert times["statistics"][0] < LIMIT
        plans = store.select("""EXPLAIN QUERY PLAN SELECT * FROM tasks WHERE state = 'open' ORDER BY id LIMIT 1""")
        assert ["INDEX" in row["detail"] for row in plans] == [True]  # however many are done


@pytest.mark.parametrize(("form", "few"), [("coco", 20), ("sa1b", 20), ("label-studio", 4)])
def test_exports_are_flat_in_memory(tmp_path, form, few):
    """Four times the images take no more."""
    peaks = []
    for images in (few, 4 * few):
        make_large(tmp_path / f"store {images}", images, 2)
        with Store(tmp_path / f"store {images}") as store:
            export_store(store, tmp_path / "warm", form, held_out=True)
            tracemalloc.start()
            try:
                export_store(store, tmp_path / "out", form)
                peaks.append(tracemalloc.get_traced_memory()[1])
            finally:
                tracemalloc.stop()
    assert peaks[1] < 1.3 * peaks[0] + 200_000
    assert peaks[1] < 20_000_000


@pytest.mark.slow
def test_ten_thousand_images_with_a_hundred_masks_each(tmp_path):
    """Figures are printed: pytest -m slow -s."""
    start = time.perf_counter()
    make_large(tmp_path / "store", 10_000, 100)
    size = sum(file.stat().st_size for file in (tmp_path / "store").iterdir() if file.is_file())
    print(f"\nmade in {time.perf_counter() - start:.0f} s, {size / 1e6:.0f} MB")
    with Store(tmp_path / "store") as store:
        for name, (median, longest) in time_store(store).items():
            print(f"{name}: median {1000 * median:.1f} ms, longest but one {1000 * longest:.1f} ms")
            assert median < LIMIT
        assert store.statistics().masks == 1_000_000 + 20
    code = (
        "import json, resource, sys, time\n"
        "from sam_jax.engine.exports import export_store\n"
        "from sam_jax.engine.store import Store\n"
        "store, found = Store(sys.argv[1]), {}\n"
        "for form in ('coco', 'sa1b'):\n"
        "    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()\n"
        "    export_store(store, f'{sys.argv[2]}/{form}', form)\n"
        "    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "    found[form] = [(after - before) / 1024, after / 1024, time.perf_counter() - start]\n"
        "print(json.dumps(found))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "store", tmp_path],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=True,
        stdout=subprocess.PIPE,
    )
    for form, (more, most, seconds) in json.loads(done.stdout).items():
        print(f"export {form}: {seconds:.0f} s, {more:.0f} MiB more, {most:.0f} MiB in all")
        assert more < 100
