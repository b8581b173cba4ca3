"""sam_jax beside torch on one GPU, with the same weights: official code, torch.compile, and Hugging Face's model.

    pip install "jax[cuda13]" -e ".[oracle]" && python benchmarks/gpu_vs_torch.py --size b h --json gpu.json
    python benchmarks/gpu_vs_torch.py --tiny                # a dry run with a tiny model, on a CPU too
    python benchmarks/gpu_vs_torch.py --rows encode --sides ours triton --dtypes bfloat16 --batches 1 8 32

Every row is of one side in one dtype; float32 is float32 for all of them (no TF32), bfloat16 is a copy of the whole
model in it, for training torch's autocast. Errors are those against the official code in float32: of embeddings, which
are of order one, and of low-resolution masks as the share of pixels that change sides. A row that fails says why, and
the next one runs.

  encode      images of the model's native size through the image encoder, --batches at once
  decode      1 and 64 prompts of one point, three masks each
  everything  an image of noise of 1500 x 2250, 32 x 32 points, all masks; torch's generator in float32 alone
  train       one optimizer step at 512 px, 8 masks, 11 interactions (see cpu_vs_torch.py)

Sides: `ours` as `load_model` gives it, `triton` with the GPU's attention kernels, `official`, `compiled` (torch.compile
of the official encoder), `huggingface` (scaled_dot_product_attention). Times are medians; the first call is apart, in
"first s": it compiles. Peaks of memory are what XLA allocates for a program, and what torch had allocated at most.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

# Both frameworks share the GPU: JAX must not take three quarters of its memory at once.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import numpy as np
import torch
import tyro
from tqdm import tqdm
from tyro.conf import arg

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks import torch_sides
from benchmarks.cpu_vs_torch import Training, same_model
from sam_jax import Prompts, Sam, SamAutomaticMaskGenerator, config
from sam_jax.models.sam import inference_variables
from tests.oracle import build_generator
from tests.tiny import SMALLEST, TINY

Row = Literal["encode", "decode", "everything", "train"]
Side = Literal["ours", "triton", "official", "compiled", "huggingface"]
Dtype = Literal["float32", "bfloat16"]
SIZES = {"b": config.vit_b, "l": config.vit_l, "h": config.vit_h}
COLUMNS = ("what", "side", "dtype", "first s", "ms", "per s", "max error", "mean error", "peak GiB")
GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Options:
    """The command line."""

    rows: Annotated[tuple[Row, ...], arg(help="what to measure")] = ("encode", "decode", "everything", "train")
    sides: Annotated[tuple[Side, ...], arg(help="whom to measure")] = (
        "ours",
        "triton",
        "official",
        "compiled",
        "huggingface",
    )
    dtypes: Annotated[tuple[Dtype, ...], arg(help="in which dtypes")] = ("float32", "bfloat16")
    size: Annotated[tuple[Literal["b", "l", "h"], ...], arg(help="size of the ViT")] = ("b",)
    batches: Annotated[tuple[int, ...], arg(help="images at once, for encode")] = (1, 8)
    prompts: Annotated[tuple[int, ...], arg(help="prompts at once, for decode")] = (1, 64)
    repetitions: Annotated[int, arg(help="timed repetitions")] = 20
    tiny: Annotated[bool, arg(help="a tiny model in the place of `size`: to see that the benchmark runs")] = False
    json: Annotated[Path | None, arg(help="also write the figures there")] = None


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One side of one row: `make` gives what is timed, and `score` compares its result with the reference."""

    what: str
    side: str
    dtype: str
    make: Callable[[], torch_sides.Run]
    items: int = 1
    score: Callable[[np.ndarray], tuple[float, float]] | None = None


class Models:
    """The same random weights on every side; what is used is made, and kept while it is."""

    def __init__(self, name: str, sam: config.SamConfig, device: str) -> None:
        self.name, self.config, self.device = name, sam, device
        self.official, model, self.variables = same_model(sam)
        self.network = model.config
        rng = np.random.default_rng(0)
        side, grid = sam.image_encoder.image_size, sam.image_encoder.grid_size
        self.images = partial(_images, side)
        self.coords = partial(rng.uniform, 0, side)
        self.embeddings = rng.standard_normal((1, grid, grid, sam.prompt_embed_dim)).astype(np.float32)

    def ours(self, side: str, dtype: str) -> tuple[Sam, Any]:
        """Our model as `load_model` gives it, with the kernels of a side."""
        chosen = config.for_inference(self.network, dtype, "triton" if side == "triton" else "auto")
        return Sam(chosen), jax.device_put(inference_variables(chosen, self.variables))

    def torch(self, side: str, dtype: str) -> torch.nn.Module:
        """The model of a side of torch."""
        made = torch_sides.build_hugging_face(self.config, self.official) if side == "huggingface" else self.official
        return torch_sides.as_dtype(made, dtype, self.device)


def _images(side: int, count: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((count, side, side, 3)).astype(np.float32)


def main() -> int:
    """Measures and prints the table; returns the exit status, 1 if any row failed."""
    args = tyro.cli(Options, description=__doc__)
    device = torch_sides.choose_device()
    print(f"jax {jax.__version__} on {jax.devices()[0].device_kind}, torch {torch.__version__} on {device}")
    print("", "| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS), sep="\n", flush=True)
    sizes = [("tiny", TINY)] if args.tiny else [(f"ViT-{size.upper()}", SIZES[size]()) for size in args.size]
    found = []
    for name, sam in sizes:
        models = Models(name, sam, device)
        candidates = [one for row in args.rows for one in ROWS[row](models, args)]
        for candidate in tqdm(candidates, desc=name, unit="row", disable=None):
            found.append(measure(candidate, args.repetitions, device))
            tqdm.write(format_row(found[-1]))
            sys.stdout.flush()
            if args.json:
                args.json.write_text(json.dumps(found, indent=2) + "\n")
    return int(any("failed" in row for row in found))


def measure(candidate: Candidate, repetitions: int, device: str) -> dict[str, Any]:
    """The figures of a candidate, or why it failed."""
    row: dict[str, Any] = {"what": candidate.what, "side": candidate.side, "dtype": candidate.dtype}
    with contextlib.ExitStack() as stack:
        if device == "cuda":
            stack.callback(torch.cuda.empty_cache)
            torch.cuda.reset_peak_memory_stats()
        try:
            start = time.perf_counter()
            run = candidate.make()
            result = run()
            row["first s"] = time.perf_counter() - start
            if candidate.score is not None:
                row["max error"], row["mean error"] = candidate.score(torch_sides.as_array(result))
            row["ms"] = 1e3 * _median_seconds(run, repetitions)
            row["per s"] = 1e3 * candidate.items / row["ms"]
            row["peak GiB"] = _peak_gib(run, device)
        except Exception as error:
            # Whatever one side lacks (a compiler, memory), the others are still worth their rows.
            row["failed"] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    return row


def _median_seconds(run: torch_sides.Run, repetitions: int) -> float:
    times = []
    for _ in range(repetitions):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _peak_gib(run: torch_sides.Run, device: str) -> float | None:
    """Memory of one of our programs as compiled, or the most that torch has had; None on CPUs and where unknown."""
    if hasattr(run, "peak_bytes"):
        return float(run.peak_bytes) / GIB
    return torch.cuda.max_memory_allocated() / GIB if device == "cuda" else None


class Compiled:
    """One of our programs, compiled for its arguments, which lie on the device."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.arguments = jax.device_put(arguments)
        self.run = jax.jit(function).lower(*self.arguments).compile()
        memory = self.run.memory_analysis()
        sizes = (memory.argument_size_in_bytes, memory.output_size_in_bytes, memory.temp_size_in_bytes)
        self.peak_bytes = sum(sizes)

    def __call__(self) -> Any:
        return jax.block_until_ready(self.run(*self.arguments))


def format_row(row: dict[str, Any]) -> str:
    """A row as Markdown."""
    if "failed" in row:
        return f"| {row['what']} | {row['side']} | {row['dtype']} | failed: {row['failed'].replace('|', '/')} |"
    kinds = {"first s": ".1f", "ms": ".2f", "per s": ".1f", "max error": ".1e", "mean error": ".1e", "peak GiB": ".2f"}
    cells = [format(row[c], kinds.get(c, "")) if row.get(c) is not None else "-" for c in COLUMNS]
    return "| " + " | ".join(cells) + " |"


def _chosen(args: Options, *known: str) -> Iterator[tuple[str, str]]:
    """(side, dtype) of the sides that a row knows, dtype by dtype."""
    for dtype in args.dtypes:
        yield from ((side, dtype) for side in args.sides if side in known)


def encode_rows(models: Models, args: Options) -> Iterator[Candidate]:
    """Images through the image encoder."""
    reference: dict[int, np.ndarray] = {}

    def score(batch: int, found: np.ndarray) -> tuple[float, float]:
        if batch not in reference:
            model = torch_sides.as_dtype(models.official.image_encoder, "float32", models.device)
            run = torch_sides.encode_official(model, models.images(batch), models.device)
            reference[batch] = torch_sides.as_array(run())
        error = np.abs(found - reference[batch])
        return float(error.max()), float(error.mean())

    def make(side: str, dtype: str, batch: int) -> torch_sides.Run:
        images = models.images(batch)
        if side in ("ours", "triton"):
            model, variables = models.ours(side, dtype)
            return Compiled(partial(model.apply, method="encode_image"), variables, images)
        model = models.torch(side, dtype)
        if side == "huggingface":
            return torch_sides.encode_hugging_face(model, images, models.device)
        encoder = torch.compile(model.image_encoder) if side == "compiled" else model.image_encoder
        return torch_sides.encode_official(encoder, images, models.device)

    for batch in args.batches:
        for side, dtype in _chosen(args, "ours", "triton", "official", "compiled", "huggingface"):
            what = f"{models.name} encode, {batch} images"
            yield Candidate(what, side, dtype, partial(make, side, dtype, batch), batch, partial(score, batch))


def decode_rows(models: Models, args: Options) -> Iterator[Candidate]:
    """Prompts of one point on one image."""

    def make(side: str, dtype: str, coords: np.ndarray) -> torch_sides.Run:
        if side == "ours":
            model, variables = models.ours(side, dtype)
            prompts = Prompts(point_coords=coords[None], point_labels=np.ones((1, len(coords), 1), np.int32))
            decode = partial(model.apply, multimask_output=True, method="decode_masks")
            return Compiled(lambda *x: decode(*x).low_res_masks[0], variables, models.embeddings, prompts)
        take = torch_sides.decode_official if side == "official" else torch_sides.decode_hugging_face
        return take(models.torch(side, dtype), models.embeddings, coords, models.device)

    def score(coords: np.ndarray, found: np.ndarray) -> tuple[float, float]:
        truth = torch_sides.as_array(make("official", "float32", coords)()) > 0
        wrong = ((found > 0) != truth).mean(axis=(-2, -1))
        return float(wrong.max()), float(wrong.mean())

    for count in args.prompts:
        coords = models.coords((count, 1, 2)).astype(np.float32)
        for side, dtype in _chosen(args, "ours", "official", "huggingface"):
            what = f"{models.name} decode, {count} prompts"
            yield Candidate(what, side, dtype, partial(make, side, dtype, coords), count, partial(score, coords))


def everything_rows(models: Models, args: Options) -> Iterator[Candidate]:
    """All masks of one image. Everything is kept, so that all sides have the same work."""
    size, points = ((90, 128), 4) if args.tiny else ((1500, 2250), 32)
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    options = {"points_per_side": points, "pred_iou_thresh": -1e9, "stability_score_thresh": 0.0}
    options |= {"stability_score_offset": 0.05, "box_nms_thresh": 1.0}

    def make(side: str, dtype: str) -> torch_sides.Run:
        if side == "official":
            generator = build_generator(models.torch(side, dtype), **options)
        else:
            generator = SamAutomaticMaskGenerator(*models.ours(side, dtype), **options)
        return lambda: np.float32(len(generator.generate(image)))

    for side, dtype in _chosen(args, "ours", "triton", "official"):
        if side != "official" or dtype == "float32":
            yield Candidate(f"{models.name} everything, {points**2} points", side, dtype, partial(make, side, dtype))


def train_rows(models: Models, args: Options) -> Iterator[Candidate]:
    """One optimizer step; parameters are float32 on both sides."""
    trained = SMALLEST if args.tiny else models.config  # SMALLEST has one layer of everything, and compiles sooner
    side_length = trained.image_encoder.image_size if args.tiny else 512

    def make(side: str, dtype: str) -> torch_sides.Run:
        attention = "triton" if side == "triton" else "auto"
        encoder = dataclasses.replace(trained.vit, image_size=side_length, attention=attention)
        sam = dataclasses.replace(trained, image_encoder=encoder, dtype=dtype)
        training = Training(sam, models.device)
        if side != "official":
            return training.ours()
        step, low = training.theirs(), dtype == "bfloat16"

        def run() -> None:
            with torch.autocast(models.device, torch.bfloat16, enabled=low):
                step()
            torch_sides.wait(models.device)

        return run

    for side, dtype in _chosen(args, "ours", "triton", "official"):
        yield Candidate(f"{models.name} training step, {side_length} px", side, dtype, partial(make, side, dtype))


ROWS = {"encode": encode_rows, "decode": decode_rows, "everything": everything_rows, "train": train_rows}

if __name__ == "__main__":
    sys.exit(main())
