"""A run over many images on the hosts of a Ray cluster, as its user sees it: what goes in, and the summary.

The results are the files that a run without Ray writes, and the same files say what is finished. All that touches Ray
in a process of its own, see `ray_driver`: Ray's library can crash where a host is lost, and the run then goes on in
a new process, with what was not answered.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import signal
import socket
import time
from multiprocessing.connection import Connection

from tqdm import tqdm

from sam_jax.batch import ray_driver
from sam_jax.batch.image_list import ImageList
from sam_jax.batch.ray_driver import Answer, ClusterOptions, Ended, Waiting, WorkerJob
from sam_jax.batch.result_files import ResultFiles
from sam_jax.batch.run import Summary, save_failures

_MOST_CRASHES = 3  # of Ray's process, without an answer between them
_CONNECT_SECONDS = 20.0
_STOP_SECONDS = 30.0


def run_on_cluster(
    images: ImageList, job: WorkerJob, files: ResultFiles, cluster: ClusterOptions, noun: str = "mask"
) -> Summary:
    """Segments images on a Ray cluster and writes their results, with a progress bar on a terminal.

    Finished images are skipped, failed ones listed; workers that die, and hosts that come and go, cost only time.

    Args:
      files: of `job.out`, on this machine, for the list of failures.

    Raises:
      ValueError: Ray is not installed, there is no such cluster, or no host of it has a worker's resources.
      OutputError: results can no longer be written.
      RuntimeError: workers, or Ray itself, die whatever they are given.
      PromptFileError: the prompts fit none of the images.
    """
    if importlib.util.find_spec("ray") is None:
        raise ValueError("ray is not installed; a cluster needs it: pip install 'sam_jax[ray]'")
    _reach(cluster.address)
    summary, start = Summary(prompts=job.prompts, noun=noun), time.perf_counter()
    files.write_failures([], job.options.failures_file)
    try:
        if job.prompts is not None:
            job.prompts.check(images)
        with tqdm(total=len(images), unit="image", disable=None, smoothing=0.05) as bar:
            _drive(images, job, cluster, summary, bar)
    finally:
        summary.seconds = time.perf_counter() - start
        save_failures(files, summary, job.options)
    return summary


def _drive(images: ImageList, job: WorkerJob, cluster: ClusterOptions, summary: Summary, bar: tqdm) -> None:
    """Starts Ray's process, and again where it crashes, until all images are answered."""
    answered: set[str] = set()
    crashes = 0
    while True:
        before = len(answered)
        code = _drive_once(images, job, cluster, answered, summary, bar)
        if code is None:
            return
        crashes = crashes + 1 if len(answered) == before else 1
        if crashes >= _MOST_CRASHES:
            name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            raise RuntimeError(f"Ray's process ended {crashes} times before any answer; the last time by {name}")
        bar.set_postfix_str("Ray crashed; starting it again")


def _drive_once(
    images: ImageList,
    job: WorkerJob,
    cluster: ClusterOptions,
    answered: set[str],
    summary: Summary,
    bar: tqdm,
) -> int | None:
    """Runs one process with Ray; its exit code where it ended without a word, else None."""
    import cloudpickle  # a command's class is made as the program runs, which plain pickle refuses

    spawn = multiprocessing.get_context("spawn")  # a fork would take along the threads of JAX
    receiver, sender = spawn.Pipe(duplex=False)
    run = cloudpickle.dumps((images, job, cluster, frozenset(answered)))
    process = spawn.Process(target=ray_driver.drive, args=(sender, run))
    process.start()
    sender.close()
    try:
        _listen(receiver, answered, summary, bar)
        return None
    except EOFError:
        process.join()
        return process.exitcode
    finally:
        receiver.close()
        process.join(_STOP_SECONDS)
        process.kill()


def _listen(receiver: Connection, answered: set[str], summary: Summary, bar: tqdm) -> None:
    """Until the end of the run; raises what ended it, or EOFError where the process is gone."""
    while True:
        match receiver.recv():
            case Answer(names, part):
                answered.update(names)
                summary.add(part)
                bar.update(len(names))
            case Waiting(anybody):
                bar.set_postfix_str("" if anybody else "no host is there; waiting for one")
            case Ended(error):
                if error is not None:
                    raise error
                return


def _reach(address: str) -> None:
    """Raises ValueError where nobody listens: Ray itself would try for eight minutes."""
    host, sign, port = address.removeprefix("ray://").rpartition(":")
    if address in ("auto", "local"):
        return
    if not sign or not port.isdigit():
        raise ray_driver.no_cluster(address, ValueError("not an address"))
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        raise ray_driver.no_cluster(address, error) from error
