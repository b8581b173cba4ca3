"""The TPU compiler's estimates of the training step on TPU topologies, without a TPU: the table in docs/training.md.

    python benchmarks/tpu_training.py                       # B, L and H on v5e and v5p
    python benchmarks/tpu_training.py --size b --topology v5e:4x4 --batch 2 --masks 64 32

Needs libtpu (pip install libtpu). Every row compiles one whole step, five to ten minutes on two cores. Nothing runs.
"""

from __future__ import annotations

import dataclasses
import json
import runpy
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import arg

from sam_jax.training.dry_run import estimate_step

ROOT = Path(__file__).parents[1]
# size, topology, images per chip
DEFAULT = [
    ("b", "v5e:4x4", 1),
    ("l", "v5e:8x16", 1),
    ("h", "v5e:16x16", 1),
    ("b", "v5p:2x2x1", 1),
    ("l", "v5p:2x2x1", 1),
    ("h", "v5p:2x2x1", 1),
]
HEADER = (
    "| model | topology | batch | masks | remat | fsdp | HBM GiB / chip | est. step ms | of it comm. ms | "
    "all comm. ms | est. MFU |"
)


@dataclasses.dataclass(frozen=True)
class Options:
    """The command line."""

    size: Annotated[tuple[Literal["b", "l", "h"], ...], arg(help="size of the ViT, with --topology")] = ()
    topology: Annotated[tuple[str, ...], arg(help="such as v5e:4x4 v5p:2x2x1, with --size")] = ()
    batch: Annotated[int, arg(help="images per chip")] = 1
    masks: Annotated[tuple[int, ...], arg(help="masks per image")] = (64,)
    remat: Annotated[Literal["blocks", "none"] | None, arg(help="replaces the config's remat")] = None
    json: Annotated[Path | None, arg(help="also write the figures there")] = None


def main() -> None:
    """Prints one line per compilation, as Markdown."""
    args = tyro.cli(Options, description=__doc__)
    chosen = DEFAULT
    if args.size or args.topology:
        chosen = [(s, t, args.batch) for s in args.size or "blh" for t in args.topology or ["v5e:4x4"]]
    rows = print_rows(chosen, args.masks, args.remat)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n")


def print_rows(
    chosen: list[tuple[str, str, int]], masks: Sequence[int], remat: str | None = None
) -> list[dict[str, Any]]:
    """Compiles each (size, topology, images per chip) for each number of masks; prints rows of Markdown."""
    print("Compiler estimates, not measurements.\n", HEADER, "|" + "---|" * HEADER.count(" |"), sep="\n", flush=True)
    rows = []
    for size, topology, per_chip in chosen:
        for count in masks:
            rows.append(_row(size, topology, per_chip, count, remat))
            print(_line(rows[-1]), flush=True)
    return rows


def _row(size: str, topology: str, per_chip: int, masks: int, remat: str | None) -> dict[str, Any]:
    config = runpy.run_path(str(ROOT / "configs" / f"sa1b_vit_{size}.py"))["get_config"]()
    chips = 1
    for side in topology.partition(":")[2].split("x"):
        chips *= int(side)
    fsdp = min(config.mesh.fsdp, chips)
    config = dataclasses.replace(config, mesh=dataclasses.replace(config.mesh, fsdp=fsdp))
    if remat:
        encoder = dataclasses.replace(config.sam.image_encoder, remat=remat == "blocks")
        config = dataclasses.replace(config, sam=dataclasses.replace(config.sam, image_encoder=encoder))
    stage = dataclasses.replace(config.stages[0], batch_size=per_chip * chips, masks_per_image=masks)
    found = estimate_step(config, stage, topology)
    return {
        "size": size,
        "topology": topology,
        "batch": stage.batch_size,
        "masks": masks,
        "remat": "blocks" if config.sam.image_encoder.remat else "none",
        "fsdp": fsdp,
        "hbm_gib": found.estimate.peak,
        "hbm_limit_gib": found.hbm,
        "step_ms": found.estimate.seconds * 1e3,
        "exposed_ms": found.estimate.exposed_seconds * 1e3,
        "communication_ms": found.estimate.communication_seconds * 1e3,
        "mfu": found.mfu,
        "kernels": found.estimate.kernels,
        "kernel_ms": found.estimate.kernel_seconds * 1e3,
        "collectives": found.estimate.collectives,
        "compile_s": found.estimate.compile_seconds,
    }


def _line(row: dict[str, Any]) -> str:
    return (
        f"| ViT-{row['size'].upper()} | {row['topology']} | {row['batch']} | {row['masks']} | {row['remat']} | "
        f"{row['fsdp']} | {row['hbm_gib']:.2f} of {row['hbm_limit_gib']} | {row['step_ms']:.0f} | "
        f"{row['exposed_ms']:.1f} | {row['communication_ms']:.1f} | {row['mfu']:.1%} |"
    )


if __name__ == "__main__":
    main()
