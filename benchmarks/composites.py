"""How many composites a core makes a second, and what they cost.

    python benchmarks/composites.py --pool data/pool [--sizes 128 256 512] [--count 100] [--costs 15] [--beside DIR]

Makes the first examples of configs/bundled.py's recipe at each size, in one thread, and prints examples a second and,
by the profiler, the functions that took longest themselves. With `--beside DIR` another version of the code in DIR,
such as what `git archive COMMIT | tar -x -C DIR` wrote, makes the same examples in turn, each after ours; printed are
the ratio of times and how many examples are not the same, byte by byte. Times are CPU seconds, so that a busy machine
disturbs them little. The pool is a directory or a packed tar.
"""

from __future__ import annotations

import cProfile
import dataclasses
import hashlib
import json
import os
import pickle
import pstats
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import tyro
from tqdm import tqdm
from tyro.conf import arg

ROOT = Path(__file__).parents[1]
if sys.argv[1:2] != ["--make"]:
    sys.path.insert(0, str(ROOT))
    from configs.bundled import get_config
    from sam_jax.config import CompositeConfig, CompositeDataConfig


@dataclasses.dataclass(frozen=True)
class Options:
    """What to measure."""

    pool: Annotated[str, arg(help="a pool's directory, or its tar")]
    sizes: Annotated[tuple[int, ...], arg(help="sides of the examples in pixels")] = (128, 256, 512)
    count: Annotated[int, arg(help="examples at each size")] = 100
    costs: Annotated[int, arg(help="functions to list")] = 15
    beside: Annotated[str | None, arg(help="a directory with another version of sam_jax/")] = None


class Maker:
    """A process that makes examples with the code in a directory."""

    def __init__(self, code: Path, pool: str, size: int):
        environment = dict(os.environ, PYTHONPATH=str(code), OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
        command = [sys.executable, str(Path(__file__).absolute()), "--make", pool, json.dumps(recipe(size))]
        self._process = subprocess.Popen(
            command, cwd=code, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def make(self, index: int) -> tuple[float, str]:
        """CPU seconds, and a hash of the example's bytes."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(b"%d\n" % index)
        self._process.stdin.flush()
        seconds, digest = self._process.stdout.readline().decode().split()
        return float(seconds), digest

    def costs(self) -> pstats.Stats:
        """What its profiler found; the process ends."""
        out, _ = self._process.communicate()
        stats = pstats.Stats()
        stats.stats = pickle.loads(out)
        return stats


def recipe(size: int) -> dict[str, Any]:
    """The fields of the bundled recipe's `CompositeConfig` at one size.

    Without those left at their defaults, which an older version need not know.
    """
    config = get_config()
    assert isinstance(config.data, CompositeDataConfig)
    stage = config.stages[-1 if size >= 512 else 0]
    changes = {"image_size": size, "masks_per_image": stage.masks_per_image, "mosaics": stage.mosaics}
    defaults = dataclasses.asdict(CompositeConfig())
    fields = dataclasses.asdict(config.data.composite) | changes
    return {name: value for name, value in fields.items() if value != defaults[name]}


def make(pool: str, fields: str) -> None:
    """The other side of a `Maker`: reads indices, writes times and hashes, and at the end its profile."""
    from sam_jax.composites.pool import load_pool
    from sam_jax.composites.source import CompositeSource
    from sam_jax.config import CompositeConfig

    source = CompositeSource(load_pool(pool, "train"), CompositeConfig(**json.loads(fields)), seed=0)
    source[0]  # what is loaded at the first call
    profile = cProfile.Profile(time.process_time)
    for index in map(int, sys.stdin):
        began = time.process_time()
        example = source[index]
        seconds = time.process_time() - began
        content = b"".join(example[name].tobytes() for name in sorted(example))
        print(seconds, hashlib.sha256(content).hexdigest(), flush=True)
        profile.runcall(source.__getitem__, index)
    profile.create_stats()
    sys.stdout.buffer.write(pickle.dumps(profile.stats))


def measure(options: Options, size: int) -> None:
    """Prints one size's figures."""
    codes = [ROOT] if options.beside is None else [ROOT, Path(options.beside).absolute()]
    makers = [Maker(code, options.pool, size) for code in codes]
    times, other = [0.0] * len(makers), 0
    for index in tqdm(range(options.count), f"{size} px", leave=False):
        found = [maker.make(index) for maker in makers]
        times = [total + seconds for total, (seconds, _) in zip(times, found, strict=True)]
        other += len({digest for _, digest in found}) > 1
    print(f"\n{size} px: {options.count / times[0]:.1f} examples a second and core")
    if options.beside is not None:
        print(f"  {options.beside}: {options.count / times[1]:.1f}, that is {times[1] / times[0]:.2f} times as long")
        print(f"  {other} of {options.count} examples are not the same bytes")
    stats = makers[0].costs()
    for maker in makers[1:]:
        maker.costs()
    total = sum(own for _, _, own, _, _ in stats.stats.values())
    print("  share of the time, in the function itself; calls an example")
    rows = sorted(stats.stats.items(), key=lambda row: -row[1][2])[: options.costs]
    for (file, line, name), (_, calls, own, _, _) in rows:
        where = name if file == "~" else f"{Path(file).name}:{line} {name}"
        print(f"  {own / total:6.1%} {calls / options.count:8.1f}  {where}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--make"]:  # with the code that PYTHONPATH names
        make(sys.argv[2], sys.argv[3])
    else:
        chosen = tyro.cli(Options, description=__doc__)
        for side in chosen.sizes:
            measure(chosen, side)
