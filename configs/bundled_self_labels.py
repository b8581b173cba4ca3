"""Train the bundled vit_tiny on, on a CPU, with labels of its own: sam-jax train bundled_self_labels

The second part of the bundled weights' training. The model labels the photographs of its pool first, with outlines that
are moved to the edges: sam-jax data pool-label data/pool --checkpoint vit_tiny --crf
"""

import dataclasses
import runpy
from pathlib import Path

from sam_jax.config import StageConfig, TrainConfig, vit_tiny


def get_config() -> TrainConfig:
    """That of `bundled` with half of its examples photographs, and a learning rate at which nothing learnt is lost."""
    config: TrainConfig = runpy.run_path(str(Path(__file__).with_name("bundled.py")))["get_config"]()
    composite = dataclasses.replace(config.data.composite, regions=0.5)
    return dataclasses.replace(
        config,
        sam=vit_tiny(),
        stages=(StageConfig(512, 4, masks_per_image=8, num_steps=510, mosaics=0.03),),
        data=dataclasses.replace(config.data, composite=composite, reuse=1),
        optim=dataclasses.replace(config.optim, learning_rate=1e-4, warmup_steps=20),
        init_from="vit_tiny",
        workdir="runs/bundled_self_labels",
    )
