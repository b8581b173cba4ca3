"""sam_jax against the official PyTorch code on this CPU: alternating repetitions in one run, ratios of times.

    pip install -e ".[oracle]" && python benchmarks/cpu_vs_torch.py [--rows encode decode tiny everything train]

Both sides get the same random weights (ViT-B except for `tiny`) and the same inputs, in float32 with all cores. A ratio
above 1 means that torch takes longer. Times on a shared machine vary; the ratio of medians of alternating repetitions
varies much less.

  encode      one image of 1024 px through the image encoder
  decode      1 and 64 one-point prompts, three masks each
  tiny        both for the part of vit_tiny that the official code has layers for: one image of 512 px, one prompt
  everything  an image of noise of 1500 x 2250, 32 x 32 points, with post-processing: the official generator against
              ours. About a third of the random weights' masks pass the predicted IoU, and a third of those the
              stability score. The share of our host code (box NMS, run lengths, records) is printed below
  train       one optimizer step at 512 px, 8 masks, 11 interactions. The official code has no training: we train its
              modules with the same losses, with points at random places
"""

from __future__ import annotations

import dataclasses
import functools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import numpy as np
import torch
import tyro
from tyro.conf import arg

sys.path.insert(0, str(Path(__file__).parents[1]))
from sam_jax import Prompts, Sam, SamAutomaticMaskGenerator, vit_b, vit_tiny
from sam_jax.config import OptimConfig, SamConfig, TrainConfig
from sam_jax.convert.torch_to_flax import load_official
from sam_jax.inference import automatic_mask_generator
from sam_jax.training.optimizer import make_optimizer
from sam_jax.training.step import create_state, train_step
from tests.oracle import build_official
from tests.tiny import official_part

Row = Literal["encode", "decode", "tiny", "everything", "train"]
ROWS: tuple[Row, ...] = ("encode", "decode", "tiny", "everything", "train")
Sides = tuple[Callable[[], object], Callable[[], object]]


def alternate(ours: Callable[[], object], theirs: Callable[[], object], repetitions: int) -> tuple[float, float]:
    """Median seconds of both, in alternating repetitions after one warm-up each."""
    seconds: tuple[list[float], list[float]] = ([], [])
    ours(), theirs()
    for _ in range(repetitions):
        for side, run in zip(seconds, (ours, theirs), strict=True):
            start = time.perf_counter()
            run()
            side.append(time.perf_counter() - start)
    return statistics.median(seconds[0]), statistics.median(seconds[1])


def same_model(config: SamConfig) -> tuple[Any, Sam, dict[str, Any]]:
    """The official model with random weights, and ours with the same weights."""
    official = build_official(config)
    with tempfile.TemporaryDirectory() as folder:
        torch.save(official.state_dict(), f"{folder}/sam.pth")
        found, variables = load_official(f"{folder}/sam.pth", config.mask_decoder.num_heads)
    return official, Sam(found), variables


class Parts:
    """Encoder and decoder by themselves."""

    def __init__(self, config: SamConfig) -> None:
        self.official, self.model, self.variables = same_model(config)
        rng = np.random.default_rng(0)
        side, grid = config.image_encoder.image_size, config.image_encoder.grid_size
        self.images = rng.standard_normal((1, side, side, 3)).astype(np.float32)
        self.coords = rng.uniform(0, side, (64, 1, 2)).astype(np.float32)
        self.embeddings = rng.standard_normal((1, grid, grid, config.prompt_embed_dim)).astype(np.float32)
        self._encode = jax.jit(lambda v, x: self.model.apply(v, x, method="encode_image"))
        # Once an image, as `SamPredictor.set_image` does.
        prepare = jax.jit(lambda v, e: self.model.apply(v, e, method="prepare_embeddings"))
        self._prepared = prepare(self.variables, self.embeddings)
        self._decode = jax.jit(lambda v, e, p: self.model.apply(v, e, p, True, method="decode_masks"))

    def encode(self) -> Sides:
        """One image through both encoders."""

        @torch.no_grad()
        def theirs() -> object:
            return self.official.image_encoder(torch.from_numpy(self.images).permute(0, 3, 1, 2))

        return lambda: jax.block_until_ready(self._encode(self.variables, self.images)), theirs

    def decode(self, n: int) -> Sides:
        """`n` one-point prompts, three masks each."""
        prompts = Prompts(point_coords=self.coords[None, :n], point_labels=np.ones((1, n, 1), np.int32))
        encoder = self.official.prompt_encoder

        @torch.no_grad()
        def theirs() -> object:
            points = (torch.from_numpy(self.coords[:n]), torch.ones(n, 1))
            sparse, dense = encoder(points=points, boxes=None, masks=None)
            return self.official.mask_decoder(
                image_embeddings=torch.from_numpy(self.embeddings).permute(0, 3, 1, 2),
                image_pe=encoder.get_dense_pe(),
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=True,
            )

        return lambda: jax.block_until_ready(self._decode(self.variables, self._prepared, prompts)), theirs


class Everything:
    """Both generators on one image, with thresholds that about a ninth of the masks pass."""

    def __init__(self) -> None:
        official, model, variables = same_model(vit_b())
        self.file = np.random.default_rng(0).integers(0, 256, (1500, 2250, 3), np.uint8)
        loose = {"pred_iou_thresh": -1e9, "stability_score_thresh": 0.0, "stability_score_offset": 0.05}
        sample = SamAutomaticMaskGenerator(model, variables, **loose, points_per_side=8, box_nms_thresh=1.0)
        found = sample.find(self.file)
        iou = float(np.quantile(found.iou, 2 / 3))
        stability = float(np.quantile(found.stability[found.iou > iou], 2 / 3))
        options = loose | {"pred_iou_thresh": iou, "stability_score_thresh": stability}
        self._ours = SamAutomaticMaskGenerator(model, variables, **options)
        from segment_anything import SamAutomaticMaskGenerator as Official

        self._theirs = Official(official, **options)
        self.host_seconds: list[float] = []
        self._count_nms()

    def _count_nms(self) -> None:
        """Measures the time spent in box NMS from here on."""
        nms, self._nms_seconds = automatic_mask_generator.nms, 0.0

        def timed(*args: Any) -> np.ndarray:
            start = time.perf_counter()
            kept = nms(*args)
            self._nms_seconds += time.perf_counter() - start
            return kept

        automatic_mask_generator.nms = timed

    def ours(self) -> object:
        """The same as `generate`, with the host's part timed separately."""
        self._nms_seconds = 0.0
        found = self._ours.find(self.file)
        start = time.perf_counter()
        records = self._ours.records(found, self.file.shape[:2])
        self.host_seconds.append(self._nms_seconds + time.perf_counter() - start)
        self.count = len(records)
        return records

    def sides(self) -> Sides:
        """Both."""
        return self.ours, lambda: self._theirs.generate(self.file)


class Training:
    """One optimizer step of both, for models of a config at its native size; torch computes on `device`."""

    MASKS = 8

    def __init__(self, sam: SamConfig, device: str = "cpu") -> None:
        self.official, self.model, self.variables = same_model(sam)
        self.official.to(device)
        self.device = device
        self.config = TrainConfig(sam=sam, optim=OptimConfig(learning_rate=1e-5))
        self.size = size = sam.image_encoder.image_size
        rng = np.random.default_rng(0)
        self.image = rng.integers(0, 256, (1, size, size, 3), np.uint8)
        self.masks = np.zeros((1, self.MASKS, size // 4, size // 4), bool)
        for n, (y, x) in enumerate(rng.integers(0, size // 8, (self.MASKS, 2))):
            self.masks[0, n, y : y + 40, x : x + 50] = True

    def sides(self) -> Sides:
        """Both; each call trains one more step."""
        return self.ours(), self.theirs()

    def ours(self) -> Callable[[], object]:
        """Each call trains our model by one more step."""
        optimizer = make_optimizer(self.config.optim, self.config.sam, 1000)
        state = create_state(self.variables, optimizer)
        step = jax.jit(functools.partial(train_step, self.model, self.config, optimizer), donate_argnums=0)
        batch = {
            "image": self.image,
            "input_size": np.full((1, 2), self.size, np.int32),
            "masks": self.masks,
            "mask_valid": np.ones((1, self.MASKS), bool),
        }

        def run() -> None:
            nonlocal state
            state, metrics = step(state, batch, jax.random.key(0))
            jax.block_until_ready((state, metrics))

        return run

    def theirs(self) -> Callable[[], object]:
        """Each call trains the official model by one more step."""
        optimizer = torch.optim.AdamW(self.official.train().parameters(), lr=1e-5, weight_decay=0.1)
        return lambda: self._torch_step(optimizer)

    def _torch_step(self, optimizer: torch.optim.Optimizer) -> None:
        sam, n, device = self.official, self.MASKS, self.device
        targets = torch.from_numpy(self.masks[0])[:, None].float().to(device)
        embedding = sam.image_encoder(sam.preprocess(torch.from_numpy(self.image).to(device).permute(0, 3, 1, 2)))
        coords = torch.rand(n, 9, 2, device=device) * self.size
        labels, total, fed_back = torch.ones(n, 9, device=device), torch.zeros((), device=device), None
        for turn in range(self.config.interaction.num_steps):
            points = (coords[:, : min(turn + 1, 9)], labels[:, : min(turn + 1, 9)])
            sparse, dense = sam.prompt_encoder(points, None, fed_back)
            pe = sam.prompt_encoder.get_dense_pe()
            logits, ious = sam.mask_decoder.predict_masks(embedding, pe, sparse, dense)
            mask_loss, iou = _torch_losses(logits, targets)
            best = (
                1 + mask_loss[:, 1:].argmin(dim=1) if turn == 0 else torch.zeros_like(mask_loss[:, 0], dtype=torch.long)
            )
            rows = torch.arange(n, device=device)
            total = total + (mask_loss + (ious - iou) ** 2)[rows, best].mean()
            fed_back = logits.detach()[rows, best][:, None]
        optimizer.zero_grad()
        (total / self.config.interaction.num_steps).backward()
        optimizer.step()


def _torch_losses(logits: Any, targets: Any) -> tuple[Any, Any]:
    """20 focal + dice of each mask (n, 4), and its true IoU."""
    logits = logits.float()
    p = torch.sigmoid(logits)
    cross_entropy = torch.nn.functional.binary_cross_entropy_with_logits(
        logits, targets.expand_as(logits), reduction="none"
    )
    true_p = p * targets + (1 - p) * (1 - targets)
    focal = ((0.25 * targets + 0.75 * (1 - targets)) * (1 - true_p) ** 2 * cross_entropy).mean(dim=(2, 3))
    dice = 1 - (2 * (p * targets).sum(dim=(2, 3)) + 1) / (p.sum(dim=(2, 3)) + targets.sum(dim=(2, 3)) + 1)
    predicted, target = logits.detach() > 0, targets > 0.5
    union = (predicted | target).sum(dim=(2, 3)).clamp(min=1)
    return 20 * focal + dice, (predicted & target).sum(dim=(2, 3)) / union


@dataclasses.dataclass(frozen=True)
class Options:
    """The command line."""

    rows: Annotated[tuple[Row, ...], arg(help="what to measure")] = ROWS
    repetitions: Annotated[int, arg(help="timed repetitions")] = 5
    json: Annotated[Path | None, arg(help="also write the figures there")] = None


def main() -> int:
    """Measures and prints the table."""
    args = tyro.cli(Options, description=__doc__)
    results: dict[str, dict[str, float]] = {}

    def measure(name: str, sides: Sides, times: int = 1) -> None:
        mine, other = alternate(*sides, args.repetitions * times)
        results[name] = {"ours_s": mine, "torch_s": other, "ratio": other / mine}
        print(f"{name:34}{mine:10.3f}{other:10.3f}{other / mine:14.2f}", flush=True)

    print(f"jax {jax.__version__}, torch {torch.__version__}, {torch.get_num_threads()} threads, float32")
    print(f"{'':34}{'ours s':>10}{'torch s':>10}{'torch / ours':>14}")
    parts = Parts(vit_b()) if {"encode", "decode"} & set(args.rows) else None
    if parts and "encode" in args.rows:
        measure("ViT-B encode, 1 image", parts.encode())
    if parts and "decode" in args.rows:
        measure("ViT-B decode, 1 prompt", parts.decode(1), times=8)
        measure("ViT-B decode, 64 prompts", parts.decode(64))
    if "tiny" in args.rows:
        tiny = Parts(official_part(vit_tiny()))
        measure("vit_tiny encode, 1 image", tiny.encode(), times=8)
        measure("vit_tiny decode, 1 prompt", tiny.decode(1), times=8)
    if "everything" in args.rows:
        everything = Everything()
        measure("ViT-B everything, 1024 points", everything.sides())
        host = statistics.median(everything.host_seconds[1:])
        results["everything on the host"] = {"share": host / results["ViT-B everything, 1024 points"]["ours_s"]}
        share = results["everything on the host"]["share"]
        print(f"    {everything.count} records; box NMS, run lengths and records are {share:.1%} of our time")
    if "train" in args.rows:
        sam = dataclasses.replace(vit_b(), image_encoder=dataclasses.replace(vit_b().image_encoder, image_size=512))
        measure("ViT-B training step, 512 px, 8 masks", Training(sam).sides())
    if args.json:
        args.json.write_text(json.dumps(results, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
