"""`sam-jax data index|check|stats` for SA-1B. Each prints, and returns an exit code: 1 for bad records."""

from __future__ import annotations

import json

from etils import epath
from tqdm import tqdm

from sam_jax.data.records import DataError
from sam_jax.data.sa1b.chart import draw_chart
from sam_jax.data.sa1b.check import check_records
from sam_jax.data.sa1b.opening import open_sa1b
from sam_jax.data.sa1b.statistics import measure, summary, table
from sam_jax.data.sa1b.tars import Sa1bTars


def index(path: str, index_dir: str | None) -> int:
    """Builds missing tar indices."""
    source = Sa1bTars(path, index_dir, progress=lambda found, total: tqdm(found, "indexing", total, unit="tar"))
    print(f"{len(source)} pairs; {source.unpaired} files without a partner, {source.duplicates} repeated image ids")
    return 0


def check(path: str, index_dir: str | None, threads: int) -> int:
    """Prints what is wrong, one line per bad record."""
    if threads < 1:
        raise DataError(f"--threads must be 1 or more, not {threads}")
    source = open_sa1b(path, index_dir)
    bad = 0
    for fault in tqdm(check_records(source, threads), "checking", len(source), unit="image"):
        if fault:
            bad += 1
            tqdm.write(fault)
    print(
        f"{len(source)} records, {bad} bad; {source.unpaired} files without a partner, {source.duplicates} repeated ids"
    )
    return int(bool(bad or source.unpaired or source.duplicates))


def stats(path: str, index_dir: str | None, out: str, limit: int) -> int:
    """Prints a table and writes stats.json and stats.png."""
    if limit < 0:
        raise DataError(f"--limit must be 0 or more, not {limit}")
    source = open_sa1b(path, index_dir)
    figures = summary(measure(source, limit, lambda order: tqdm(order, "measuring", unit="image")))
    print(table(figures))
    directory = epath.Path(out)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "stats.json").write_text(json.dumps({"path": str(path), **figures}, indent=1) + "\n")
    with (directory / "stats.png").open("wb") as file:
        draw_chart(figures, str(path)).save(file, "PNG")
    print(f"{directory / 'stats.json'} and {directory / 'stats.png'} written")
    return 0
