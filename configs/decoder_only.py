"""Train the mask decoder alone, on embeddings computed once: sam-jax train decoder_only --data.path DATA

Before the first step every training image's embedding is written to `finetune.embedding_cache` (2 MB per image at
1024 px); after that the image encoder does not run. The cheapest way to adapt SAM: it trains on a CPU too.
"""

import dataclasses

from sam_jax.config import (
    FinetuneConfig,
    InteractionConfig,
    OptimConfig,
    RecordDataConfig,
    StageConfig,
    TrainConfig,
    vit_b,
)


def get_config() -> TrainConfig:
    """Everything but the mask decoder is frozen."""
    return TrainConfig(
        sam=dataclasses.replace(vit_b(), dtype="bfloat16"),
        stages=(StageConfig(image_size=1024, batch_size=8, masks_per_image=16, num_steps=3_000),),
        data=RecordDataConfig(path="data/coco/instances.json", hold_out=0.1),
        interaction=InteractionConfig(num_points=4, num_mask_only_steps=1),
        optim=OptimConfig(learning_rate=1e-4, weight_decay=0.01, warmup_steps=100, cosine=True, clip_norm=1.0),
        finetune=FinetuneConfig(
            frozen=("image_encoder/.*", "prompt_encoder/.*"), embedding_cache="data/embeddings_sam_vit_b"
        ),
        init_from="checkpoints/sam_vit_b",
        workdir="runs/decoder_only",
        eval_every=500,
        overlay_every=500,
        checkpoint_every=500,
    )
