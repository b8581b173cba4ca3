"""Fine-tune the bundled vit_tiny, even on a CPU: sam-jax train finetune_tiny --data.path my_images

--data.path is a folder of images, each with a .json file in SA-1B's format, or a COCO instances file. A few hundred
images and some minutes adapt it to one kind of object.
"""

from sam_jax.config import (
    InteractionConfig,
    LossConfig,
    OptimConfig,
    RecordDataConfig,
    StageConfig,
    TrainConfig,
    vit_tiny,
)


def get_config() -> TrainConfig:
    """All parameters are trained, at a low learning rate."""
    return TrainConfig(
        sam=vit_tiny(),
        stages=(StageConfig(image_size=512, batch_size=4, masks_per_image=8, num_steps=300),),
        data=RecordDataConfig(path="data/images", hold_out=0.1),
        interaction=InteractionConfig(num_points=1, num_mask_only_steps=0),
        loss=LossConfig(focal_alpha=0.75, supervise_all_iou=True, supervise_all_outputs=True),
        optim=OptimConfig(learning_rate=3e-4, weight_decay=0.01, warmup_steps=20, cosine=True, clip_norm=1.0),
        init_from="vit_tiny",
        workdir="runs/finetune_tiny",
        eval_every=100,
        overlay_every=100,
        checkpoint_every=100,
    )
