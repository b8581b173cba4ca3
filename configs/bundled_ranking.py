"""Which of three masks one click means: sam-jax train bundled_ranking --init-from runs/bundled/model

The last stage of the bundled model. In the composites of the recipe `bundled` a click often means a part or a surface;
in photographs people mostly mean the whole object. The IoU head alone learns that, on objects without parts: masks
stay as they are, and what changes is which of them has the highest predicted IoU.
"""

from sam_jax.config import (
    CompositeConfig,
    CompositeDataConfig,
    FinetuneConfig,
    InteractionConfig,
    LossConfig,
    OptimConfig,
    StageConfig,
    TrainConfig,
    vit_tiny,
)


def get_config() -> TrainConfig:
    """A few minutes on a CPU: everything but the IoU head is frozen."""
    return TrainConfig(
        sam=vit_tiny(),
        stages=(StageConfig(512, 8, masks_per_image=4, num_steps=240),),
        data=CompositeDataConfig(
            pool="data/pool",
            composite=CompositeConfig(
                labelled=0.0,
                mosaics=0.0,
                pseudo_regions=0.0,
                regions=0.25,
                max_objects=4,
                max_distractors=3,
                photo_region_object=0.0,
                region_object=0.3,
                parts=0.0,
                degrade=0.6,
            ),
        ),
        interaction=InteractionConfig(
            num_points=1, num_mask_only_steps=0, box_probability=0.3, box_noise=0.04, box_noise_max=8.0
        ),
        loss=LossConfig(focal_alpha=0.6, supervise_all_iou=True, supervise_all_outputs=True),
        optim=OptimConfig(learning_rate=1e-3, weight_decay=0.01, warmup_steps=20, cosine=True, clip_norm=1.0),
        finetune=FinetuneConfig(frozen=(r"(?!mask_decoder/iou_prediction_head/).*",)),
        init_from="runs/bundled/model",
        storage_dtype="float16",
        workdir="runs/bundled_ranking",
    )
