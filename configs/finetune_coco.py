"""Fine-tune a converted SAM on your own objects: sam-jax train finetune_coco --data.path instances.json

--data.path is a COCO instances file with its images in `images/` beside it (or --data.image-dir). The image encoder
learns low-rank updates (LoRA), the rest is trained in full: it fits one 16 GB chip. configs/decoder_only.py needs less.
"""

from sam_jax.config import (
    FinetuneConfig,
    InteractionConfig,
    OptimConfig,
    RecordDataConfig,
    StageConfig,
    TrainConfig,
    for_training,
    vit_b,
)


def get_config() -> TrainConfig:
    """A few thousand steps from the official weights, with jitter, since most own data sets are small."""
    return TrainConfig(
        sam=for_training(vit_b()),
        stages=(StageConfig(image_size=1024, batch_size=8, masks_per_image=16, num_steps=3_000),),
        data=RecordDataConfig(path="data/coco/instances.json", hold_out=0.1, jitter=(0.5, 2.0), num_workers=4),
        interaction=InteractionConfig(num_points=4, num_mask_only_steps=1),
        optim=OptimConfig(learning_rate=1e-4, weight_decay=0.01, warmup_steps=100, cosine=True, clip_norm=1.0),
        finetune=FinetuneConfig(lora_rank=8),
        init_from="checkpoints/sam_vit_b",
        workdir="runs/finetune_coco",
        eval_every=500,
        overlay_every=500,
        checkpoint_every=500,
    )
