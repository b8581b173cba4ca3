"""Ours against the official PyTorch code on this CPU: one run, alternating repetitions, ratios.

    pip install -e ".[oracle]" && python benchmarks/cpu_vs_torch.py [--repetitions 5] [--json OUT.json]

Both sides get the same random ViT-B weights and the same inputs, in float32 with all cores. A ratio above 1 means that
torch takes longer. Times on a shared machine vary; the ratio of medians taken turn by turn varies far less.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from convert.torch_to_flax import load_official
from sam_jax import Prompts, Sam, vit_b
from tests.oracle import build_official


def alternate(ours: Callable[[], object], theirs: Callable[[], object], repetitions: int) -> tuple[float, float]:
    """Median seconds of both, measured turn by turn after one warm-up each."""
    seconds: tuple[list[float], list[float]] = ([], [])
    ours(), theirs()
    for _ in range(repetitions):
        for side, run in zip(seconds, (ours, theirs), strict=True):
            start = time.perf_counter()
            run()
            side.append(time.perf_counter() - start)
    return statistics.median(seconds[0]), statistics.median(seconds[1])


class Rivals:
    """The same model in both frameworks, with one image embedding to decode from."""

    def __init__(self) -> None:
        self.torch_sam = build_official(vit_b())
        with tempfile.TemporaryDirectory() as folder:
            torch.save(self.torch_sam.state_dict(), f"{folder}/sam.pth")
            config, self.variables = load_official(f"{folder}/sam.pth")
        self.model = Sam(config)
        rng = np.random.default_rng(0)
        self.images = rng.standard_normal((1, 1024, 1024, 3)).astype(np.float32)
        self.coords = rng.uniform(0, 1024, (64, 1, 2)).astype(np.float32)
        self.embeddings = rng.standard_normal((1, 64, 64, 256)).astype(np.float32)
        self._encode = jax.jit(lambda v, x: self.model.apply(v, x, method="encode_image"))
        self._decode = jax.jit(lambda v, e, p: self.model.apply(v, e, p, True, method="decode_masks"))

    def encode_ours(self) -> object:
        """One image through our encoder."""
        return jax.block_until_ready(self._encode(self.variables, self.images))

    def encode_torch(self) -> object:
        """One image through the official encoder."""
        with torch.no_grad():
            return self.torch_sam.image_encoder(torch.from_numpy(self.images).permute(0, 3, 1, 2))

    def decode_ours(self, n: int) -> object:
        """`n` one-point prompts, three masks each."""
        prompts = Prompts(point_coords=self.coords[None, :n], point_labels=np.ones((1, n, 1), np.int32))
        return jax.block_until_ready(self._decode(self.variables, self.embeddings, prompts))

    def decode_torch(self, n: int) -> object:
        """The same through the official prompt encoder and mask decoder."""
        encoder = self.torch_sam.prompt_encoder
        with torch.no_grad():
            points = (torch.from_numpy(self.coords[:n]), torch.ones(n, 1))
            sparse, dense = encoder(points=points, boxes=None, masks=None)
            return self.torch_sam.mask_decoder(
                image_embeddings=torch.from_numpy(self.embeddings).permute(0, 3, 1, 2),
                image_pe=encoder.get_dense_pe(),
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=True,
            )


def main() -> int:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rivals = Rivals()
    cases = {
        "ViT-B encode, 1 image": (rivals.encode_ours, rivals.encode_torch, 1),
        "ViT-B decode, 1 prompt": (lambda: rivals.decode_ours(1), lambda: rivals.decode_torch(1), 8),
        "ViT-B decode, 64 prompts": (lambda: rivals.decode_ours(64), lambda: rivals.decode_torch(64), 1),
    }
    results = {}
    print(f"jax {jax.__version__}, torch {torch.__version__}, {torch.get_num_threads()} threads, float32")
    print(f"{'':26}{'ours s':>10}{'torch s':>10}{'torch / ours':>14}")
    for name, (ours, theirs, times) in cases.items():
        mine, other = alternate(ours, theirs, args.repetitions * times)
        results[name] = {"ours_s": mine, "torch_s": other, "ratio": other / mine}
        print(f"{name:26}{mine:10.3f}{other:10.3f}{other / mine:14.2f}", flush=True)
    if args.json:
        args.json.write_text(json.dumps(results, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
