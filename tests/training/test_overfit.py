"""Can the whole training system learn eight photographs by heart? The quickest way to see a broken gradient path."""

import json
import shutil
from pathlib import Path

import pytest

from sam_jax.checkpoint import model_path
from sam_jax.config import (
    InteractionConfig,
    LossConfig,
    OptimConfig,
    RecordDataConfig,
    StageConfig,
    TrainConfig,
    vit_tiny,
)
from sam_jax.training.loop import train

DEVSET = Path(__file__).parents[1] / "devset_mini"

pytestmark = pytest.mark.slow


def test_eight_images_are_learned_by_heart(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for file in sorted(DEVSET.glob("*.json"))[:8]:
        for suffix in (".json", ".jpg"):
            shutil.copy(file.with_suffix(suffix), images)
    config = TrainConfig(
        sam=vit_tiny(),
        stages=(StageConfig(image_size=256, batch_size=8, masks_per_image=8, num_steps=300),),
        data=RecordDataConfig(path=str(images), hold_out=0.0),
        interaction=InteractionConfig(num_points=0, num_mask_only_steps=0, box_probability=1.0, box_noise=0.0),
        loss=LossConfig(focal_alpha=0.75),
        optim=OptimConfig(
            learning_rate=2e-3, b2=0.98, weight_decay=0.0, warmup_steps=20, cosine=True, layer_decay=1.0, clip_norm=1.0
        ),
        init_from=str(model_path(None)),
        workdir=str(tmp_path / "run"),
        log_every=1,
    )
    train(config)
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert len(rows) == 300
    assert max(row["iou_1"] for row in rows) > 0.95
