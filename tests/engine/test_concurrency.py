"""Many annotators at once, as threads and as processes."""

import os
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sam_jax.engine.rows import VersionConflict
from sam_jax.engine.store import Store
from tests.engine.stores import draft, make_store

ROOT = Path(__file__).parents[2]
KEY = str(uuid.UUID(int=7))


def label_all(store, annotator, masks=2):
    """Labels images until nothing is left; their ids."""
    done = []
    while (task := store.claim_next(annotator)) is not None:
        for _ in range(masks):
            store.save_mask(task.id, annotator, draft(), 0)
        store.finish(task.id, annotator)
        done.append(task.image_id)
    return done


def add_up(store, task_id, times, own):
    """Adds 1 to the number that is a mask's name; whoever loses a race reads again.

    `own` is a number that tells these saves from equal ones of others, which would count as the same save sent twice.
    """
    for _ in range(times):
        while True:
            mask = store.mask(KEY)
            try:
                store.save_mask(task_id, "ada", draft(key=KEY, name=str(int(mask.name) + 1), seconds=own), mask.version)
                break
            except VersionConflict:
                continue


def test_each_image_goes_to_one_thread(tmp_path):
    with make_store(tmp_path, 24) as store, ThreadPoolExecutor(6) as pool:
        parts = list(pool.map(lambda number: label_all(store, f"annotator {number}"), range(6)))
        assert sorted(image for part in parts for image in part) == list(range(1, 25))
        assert all(len(store.masks(image)) == 2 for image in range(1, 25))
        authors = {image: {mask.author for mask in store.masks(image)} for image in range(1, 25)}
        assert authors == {image: {f"annotator {n}"} for n, part in enumerate(parts) for image in part}


def test_no_update_is_lost_among_threads(tmp_path):
    with make_store(tmp_path, 1) as store, ThreadPoolExecutor(4) as pool:
        task = store.claim_next("ada")
        store.save_mask(task.id, "ada", draft(key=KEY, name="0"), 0)
        list(pool.map(lambda own: add_up(store, task.id, 12, own), range(4)))
        mask = store.mask(KEY)
        assert (mask.name, mask.version) == ("48", 49)


def test_the_same_save_from_many_threads_is_one(tmp_path):
    with make_store(tmp_path, 1) as store, ThreadPoolExecutor(4) as pool:
        task, same = store.claim_next("ada"), draft()
        saved = list(pool.map(lambda _: store.save_mask(task.id, "ada", same, 0), range(8)))
        assert len({(mask.key, mask.version, mask.updated_at) for mask in saved}) == 1
        assert len(store.masks(task.image_id)) == store.statistics().masks == 1


def start(directory, code):
    """A Python process with an open `store`."""
    lines = [
        "import os, time",
        "from sam_jax.engine.store import Store",
        "from tests.engine.test_concurrency import add_up, label_all",
        f"store = Store({str(directory)!r})",
        code,
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-c", "\n".join(lines)], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    )


def test_two_processes(tmp_path):
    """They share out the images, and neither overwrites what the other has saved. The one that dies loses its lease."""
    with make_store(tmp_path, 17) as store:
        task = store.claim_next("ada")
        store.save_mask(task.id, "ada", draft(key=KEY, name="0"), 0)
        code = f"add_up(store, {task.id}, 15, os.getpid()); print(*label_all(store, str(os.getpid())))"
        processes = [start(store.directory, code) for _ in range(2)]
        parts = [process.communicate(timeout=120)[0].split() for process in processes]
        assert [process.returncode for process in processes] == [0, 0]
        assert (store.mask(KEY).name, store.mask(KEY).version) == ("30", 31)
        assert Counter(int(image) for part in parts for image in part) == Counter(range(2, 18))
        store.finish(task.id, "ada")

        store.add_task(1, "semi-automatic")
        dying = start(
            store.directory,
            "print(store.claim_next('eve', lease_seconds=1.0).id, flush=True); import time; time.sleep(60)",
        )
        claimed = int(dying.stdout.readline())
        assert store.claim_next("bob") is None
        dying.kill()
        dying.communicate()
        until = time.monotonic() + 30
        while (task := store.claim_next("bob")) is None and time.monotonic() < until:
            time.sleep(0.1)
        assert task.id == claimed


def test_connections_end_with_their_threads(tmp_path):
    with make_store(tmp_path, 1) as store:
        for _ in range(5):
            thread = threading.Thread(target=store.statistics)
            thread.start()
            thread.join()
        assert len(store._open) == 1
        other = Store(store.directory)
        other.close()
        assert len(other._open) == 0
