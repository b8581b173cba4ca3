"""Ray's side of a run over many images: one worker per host, each with the compiled model, and who gives them images.

An image whose worker died is given to another one, and is done again only where its results are not there. Ray's own
tasks wait for the actor that they were given to; here a lost host's images go to those that are left, and a host that
joins gets its share.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any

from sam_jax.batch.image_list import ImageFile
from sam_jax.batch.prompt_files import PromptTable
from sam_jax.batch.result_files import ResultFiles
from sam_jax.batch.run import RunOptions, Summary, own_devices, writing_hooks
from sam_jax.batch.segmenters import Segmenter
from sam_jax.batch.stream import segment_images
from sam_jax.files import absolute

_CHUNK = 16  # most images of one request: what is given out again when a worker dies
_AHEAD = 2  # requests that a worker has: one in work, one that waits
_MOST_DEATHS = 3  # of workers, by the same images or before they are ready
_LOOK_SECONDS = 5.0  # how often hosts are counted anew


@dataclasses.dataclass(frozen=True)
class ClusterOptions:
    """Which cluster, and what a worker takes of it.

    Attributes:
      address: "auto" finds this machine's cluster, "HOST:6379" and "ray://HOST:10001" name one, "local" starts one.
      resources: of one worker, such as {"TPU": 4}; None means a host's TPUs, else its GPUs, else all its CPUs but one.
      workers: at most so many; None means as many as the hosts hold.
    """

    address: str = "auto"
    resources: dict[str, float] | None = None
    workers: int | None = None

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"workers of the cluster must be 1 or more, not {self.workers}")
        for name, count in (self.resources or {}).items():
            if count <= 0:
                raise ValueError(f"resource {name} must be more than 0, not {count:g}")


@dataclasses.dataclass(frozen=True)
class WorkerJob:
    """What a worker needs, as it can be sent to it.

    Attributes:
      build: makes the segmenter, on the worker's host.
      out, formats, settings: as of `ResultFiles`; `out` is absolute.
      prompts, options: as of `run_images`.
    """

    build: Callable[[], Segmenter]
    out: str
    formats: tuple[str, ...]
    settings: dict[str, Any]
    prompts: PromptTable | None
    options: RunOptions


@dataclasses.dataclass(frozen=True)
class Answer:
    """Images (their `ImageFile.name`) that are done or have failed, and their summary."""

    names: list[str]
    summary: Summary


@dataclasses.dataclass(frozen=True)
class Waiting:
    """Whether there is any host to wait for."""

    anybody: bool


@dataclasses.dataclass(frozen=True)
class Ended:
    """The end of a run, and the error that caused it, if any."""

    error: Exception | None


def drive(connection: Connection, run: bytes) -> None:
    """Segments images on a cluster; sends an `Answer` for each request, then `Ended`.

    Runs in a process of its own, which ends by itself when nobody listens any more.

    Args:
      run: by cloudpickle, the `ImageList`, the `WorkerJob`, the `ClusterOptions`, and the names of images that an
        earlier process was told the answers of.
    """
    import cloudpickle

    images, job, cluster, answered = cloudpickle.loads(run)
    left = (image for image in images if image.name not in answered)
    ray: Any = None
    try:
        try:
            ray = _connect(cluster.address)
            _ClusterRun(ray, job, cluster, left, len(images) - len(answered), connection).work()
            ended = Ended(None)
        except BrokenPipeError:
            return
        except Exception as error:
            ended = Ended(error)
        connection.send(ended)
    except (BrokenPipeError, KeyboardInterrupt):
        return
    finally:
        if ray is not None:
            ray.shutdown()  # ends the workers, too


class _Worker:
    """Lives on a host of the cluster."""

    def __init__(self, job: WorkerJob) -> None:
        self._job = job

    def build(self) -> str:
        """Loads the model; the host's id. Not in __init__, whose errors Ray takes for a death."""
        import ray

        self._segmenter = self._job.build()
        self._files = ResultFiles(self._job.out, self._job.formats, self._job.settings, listing=False)
        node: str = ray.get_runtime_context().get_node_id()
        return node

    def segment(self, chunk: Sequence[ImageFile]) -> Summary:
        """Segments images and writes their results."""
        job, summary = self._job, Summary()
        results = segment_images(
            chunk,
            self._segmenter,
            workers=job.options.workers,
            devices=own_devices(job.options, len(chunk)),
            hooks=writing_hooks(self._files, job.prompts, job.options),
            timings=summary.timings,
        )
        for result in results:
            summary.count(result)
        return summary


def _connect(address: str) -> Any:
    import ray

    try:
        with warnings.catch_warnings():
            # JAX's warning of forks: Ray starts its processes, and this one runs nothing of JAX.
            warnings.filterwarnings("ignore", r"os\.fork\(\) was called", RuntimeWarning)
            dashboard = False if address == "local" else None
            where = None if address == "local" else address
            ray.init(where, log_to_driver=False, logging_level=logging.WARNING, include_dashboard=dashboard)
    except ConnectionError as error:
        raise no_cluster(address, error) from error
    return ray


def no_cluster(address: str, error: Exception) -> ValueError:
    """The error that says that there is no cluster, and what an address may be."""
    return ValueError(
        f"no Ray cluster at {address!r} ({_line(error)}); expected 'auto', 'HOST:6379', 'ray://HOST:10001', "
        "or 'local' to start one here"
    )


def _chunks(images: Iterable[ImageFile], count: int, workers: int) -> Iterator[list[ImageFile]]:
    """Requests, with paths that hold wherever a worker's current directory is."""
    moved = (dataclasses.replace(one, path=absolute(one.path)) for one in images)
    size = max(1, min(_CHUNK, count // (2 * _AHEAD * max(1, workers))))
    while chunk := list(itertools.islice(moved, size)):
        yield chunk


def worker_resources(nodes: Sequence[dict[str, float]], wanted: dict[str, float] | None) -> dict[str, float]:
    """What one worker takes of a host.

    Args:
      nodes: resources of each host, as Ray names them.

    Raises:
      ValueError: no host has as much.
    """
    if wanted is None:
        largest = {name: max((node.get(name, 0) for node in nodes), default=0) for name in ("TPU", "GPU", "CPU")}
        chips = next((name for name in ("TPU", "GPU") if largest[name]), None)
        wanted = {chips: largest[chips]} if chips else {"CPU": max(1, largest["CPU"] - 1)}
    if not any(_fits(node, wanted) for node in nodes):
        asked = ", ".join(f"{name} {count:g}" for name, count in wanted.items())
        raise ValueError(f"no host of the cluster has {asked}; say what a worker takes: --ray-resources CPU=2")
    return wanted


def _fits(node: dict[str, float], wanted: dict[str, float]) -> int:
    """How many workers a host has room for."""
    return int(min(node.get(name, 0) // count for name, count in wanted.items()))


class _ClusterRun:
    """The driver's part: gives chunks to workers, and takes back those of the dead."""

    def __init__(
        self,
        ray: Any,
        job: WorkerJob,
        cluster: ClusterOptions,
        images: Iterable[ImageFile],
        count: int,
        connection: Connection,
    ) -> None:
        self._ray, self._cluster, self._connection = ray, cluster, connection
        self._deaths: dict[str, int] = {}  # of workers, by the images that they had
        self._early_deaths = 0
        self._resources = worker_resources(list(self._nodes().values()), cluster.resources)
        self._fresh, self._returned = _chunks(images, count, self._wanted_workers()), deque[list[ImageFile]]()
        self._job = ray.put(job)
        self._worker_class = ray.remote(_Worker).options(**_actor_options(self._resources))
        self._starting: dict[Any, Any] = {}  # what tells that it is ready -> worker
        self._ready: dict[Any, int] = {}  # worker -> how many requests it has
        self._node_of: dict[Any, str] = {}
        self._requests: dict[Any, tuple[Any, list[ImageFile]]] = {}  # what brings the answer -> worker, chunk

    def work(self) -> None:
        """Until all images are done or have failed."""
        looked = -_LOOK_SECONDS
        while True:
            if time.monotonic() - looked > _LOOK_SECONDS:
                self._start_workers()
                looked = time.monotonic()
            self._give_out()
            if not self._requests and not self._has_more():
                return
            waiting = [*self._starting, *self._requests]
            self._connection.send(Waiting(bool(waiting)))
            if not waiting:
                time.sleep(_LOOK_SECONDS)
                continue
            for answer in self._ray.wait(waiting, num_returns=1, timeout=_LOOK_SECONDS)[0]:
                if answer in self._starting:
                    self._take_worker(answer)
                else:
                    self._take_answer(answer)

    def _nodes(self) -> dict[str, dict[str, float]]:
        """The hosts that are there: id -> resources."""
        return {node["NodeID"]: node["Resources"] for node in self._ray.nodes() if node["Alive"]}

    def _wanted_workers(self) -> int:
        room = sum(_fits(node, self._resources) for node in self._nodes().values())
        return min(room, self._cluster.workers or room)

    def _start_workers(self) -> None:
        for _ in range(self._wanted_workers() - len(self._starting) - len(self._ready)):
            worker = self._worker_class.remote(self._job)
            self._starting[worker.build.remote()] = worker

    def _has_more(self) -> bool:
        if not self._returned and (chunk := next(self._fresh, None)):
            self._returned.append(chunk)
        return bool(self._returned)

    def _give_out(self) -> None:
        for worker in self._ready:
            while self._ready[worker] < _AHEAD and self._has_more():
                chunk = self._returned.popleft()
                self._requests[worker.segment.remote(chunk)] = worker, chunk
                self._ready[worker] += 1

    def _take_worker(self, answer: Any) -> None:
        worker = self._starting.pop(answer)
        try:
            self._node_of[worker] = self._ray.get(answer)
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from error
        except self._ray.exceptions.RayActorError as error:
            self._early_deaths += 1
            if self._early_deaths >= _MOST_DEATHS:
                raise RuntimeError(
                    f"{_MOST_DEATHS} workers died while they loaded the model; the last: {_line(error)}"
                ) from error
            return
        self._early_deaths = 0
        self._ready[worker] = 0

    def _take_answer(self, answer: Any) -> None:
        worker, chunk = self._requests.pop(answer)
        try:
            found = self._ray.get(answer)
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from error
        except (self._ray.exceptions.RayActorError, self._ray.exceptions.ObjectLostError) as error:
            self._ready.pop(worker, None)
            self._ray.kill(worker)  # one that cannot be reached may live on
            self._take_back(chunk, error, self._node_of[worker] in self._nodes())
            return
        if worker in self._ready:
            self._ready[worker] -= 1
        self._connection.send(Answer([image_file.name for image_file in chunk], found))

    def _take_back(self, chunk: list[ImageFile], error: Exception, has_host: bool) -> None:
        """Gives images of a dead worker to others, or says that they have failed for good.

        Where the host is still there, one of them may be what killed it: they are given out one by one.
        """
        if not has_host:
            self._returned.append(chunk)
            return
        for image_file in chunk:
            deaths = self._deaths[image_file.path] = self._deaths.get(image_file.path, 0) + 1
            if deaths < _MOST_DEATHS:
                self._returned.append([image_file])
                continue
            why = f"{image_file.path}: {deaths} workers died that had it; the last: {_line(error)}"
            self._connection.send(Answer([image_file.name], Summary(failures=[(image_file, why)])))


def _line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _actor_options(resources: dict[str, float]) -> dict[str, Any]:
    others = {name: count for name, count in resources.items() if name not in ("CPU", "GPU")}
    return {
        "num_cpus": resources.get("CPU", 0),
        "num_gpus": resources.get("GPU", 0),
        "resources": others,
        "scheduling_strategy": "SPREAD",
        "max_restarts": 0,
    }
