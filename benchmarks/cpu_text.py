"""How long a text model takes to score the masks of an image: python benchmarks/cpu_text.py

Fresh weights, and masks that are squares: neither changes the time. The program is compiled, and run once, before.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from pathlib import Path

import jax
import numpy as np
import tyro

sys.path.insert(0, str(Path(__file__).parent.parent))

from sam_jax import config as configs
from sam_jax.inference.overlays import mask_record
from sam_jax.text.candidates import embed_masks
from sam_jax.text.embedding import LoadedTowers
from sam_jax.text.tokenizers import Tokenizer
from sam_jax.text.towers import init_towers


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """What to measure.

    Attributes:
      towers: a size of sam_jax.config, such as clip_vit_b_32.
      masks: of one image; each is seen twice, with its background and without.
      side: of the image, pixels.
      dtype: compute dtype.
    """

    towers: str = "clip_vit_b_32"
    masks: int = 100
    side: int = 1024
    dtype: str = "float32"


def main(benchmark: Benchmark) -> None:
    """Measures and prints a line."""
    config = getattr(configs, benchmark.towers)()
    tokens = Tokenizer(lambda _: [1], lambda *_: False, (), 2, 0, config.text.context_length, lower=False)
    towers = LoadedTowers(config, init_towers(config, jax.random.key(0)), tokens, benchmark.dtype)
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (benchmark.side, benchmark.side, 3), np.uint8)
    records = []
    for number in range(benchmark.masks):
        mask = np.zeros(image.shape[:2], bool)
        x, y = rng.integers(0, benchmark.side // 2, 2)
        mask[y : y + benchmark.side // 3, x : x + benchmark.side // 3] = True
        records.append(mask_record(number, mask, 0.9, {}))
    options = configs.TextOptions()
    embed_masks(towers, image, records[:1], options)
    start, cpu = time.perf_counter(), time.process_time()
    embed_masks(towers, image, records, options, progress=True)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    print(
        f"{benchmark.towers}, {benchmark.dtype}: {benchmark.masks} masks in {seconds:.1f} s, {cpu:.1f} s of all cores"
    )


if __name__ == "__main__":
    main(tyro.cli(Benchmark))
