"""Train SAM to take texts as prompts (SAM paper, appendix D.6): sam-jax train text_to_mask --data.path data/sa1b

No text is needed: each object's prompt is CLIP's embedding of its crop, and at inference that of a phrase.
--text.towers is CLIP ViT-L/14 at 336 px (`sam-jax convert from-clip`). The first run computes four embeddings of each
mask of 100 x 100 pixels or more into `text.cache`. --init-from may be a SAM without text prompts, or an MAE's encoder.
"""

import dataclasses

from sam_jax.config import (
    MeshConfig,
    OptimConfig,
    RecordDataConfig,
    StageConfig,
    TextPromptConfig,
    TrainConfig,
    for_training,
    vit_h,
)


def get_config() -> TrainConfig:
    """120,000 steps of 128 images with large-scale jitter; all else as in the paper's first recipe."""
    return TrainConfig(
        sam=for_training(dataclasses.replace(vit_h(), text_embed_dim=768), dropout_rate=0.1, drop_path_rate=0.4),
        stages=(StageConfig(image_size=1024, batch_size=128, masks_per_image=64, num_steps=120_000),),
        data=RecordDataConfig(path="data/sa1b", jitter=(0.1, 2.0), num_workers=8),
        text=TextPromptConfig(towers="checkpoints/clip_vit_l_14_336", cache="data/text_embeddings"),
        optim=OptimConfig(learning_rate=8e-4, weight_decay=0.1, layer_decay=0.8, warmup_steps=250),
        mesh=MeshConfig(fsdp=16),
        init_from="checkpoints/mae_vit_h",
        workdir="runs/text_to_mask",
        log_every=50,
        eval_every=5_000,
        eval_images=1_024,
        overlay_every=5_000,
        checkpoint_every=1_000,
    )
