"""The bundled vit_tiny: sam-jax train bundled --minutes 9

Trains 7 M parameters on composites made on the fly, on one host with a GPU or a TPU: first at 256 px, where prompts are
learned for a quarter of the cost, then at the native 512 px. Without `--minutes` it takes the steps below.
Before it, make the pool of cut-outs and images: sam-jax data pool data/pool
and label regions of its images with GrabCut: sam-jax data pool-label data/pool
docs/training.md has the commands for a machine that has neither.
"""

import dataclasses

from sam_jax.config import (
    AugmentConfig,
    CompositeConfig,
    CompositeDataConfig,
    InteractionConfig,
    LossConfig,
    OptimConfig,
    StageConfig,
    TrainConfig,
    vit_tiny,
)


def get_config() -> TrainConfig:
    """The recipe of the bundled weights on an accelerator; docs/model_card.md has what came of it."""
    sam = vit_tiny()
    encoder = dataclasses.replace(sam.vit, token_order="grid")
    return TrainConfig(
        sam=dataclasses.replace(sam, image_encoder=encoder, dtype="bfloat16"),
        stages=(
            StageConfig(256, 128, masks_per_image=8, num_steps=3_700, mosaics=0.15),
            StageConfig(512, 48, masks_per_image=8, num_steps=3_700, mosaics=0.06),
        ),
        # Easier images than the default: a small model learns more from a few large objects in a short training.
        data=CompositeDataConfig(
            pool="data/pool",
            composite=CompositeConfig(
                labelled=0.02,
                pseudo_regions=0.03,
                regions=0.25,
                max_objects=7,
                max_distractors=4,
                photo_region_object=0.1,
                region_object=0.3,
                parts=0.25,
                degrade=0.6,
            ),
            # An accelerator takes six times as many at 256 px, and three times at 512 px, as a dozen cores make.
            reuse=12,
        ),
        augment=AugmentConfig(mirror=0.5, recolour=0.7),
        # Fewer interactions than the paper's eleven: the encoder's share of the work has to stay high.
        # Boxes are nearly tight: where a small model may trust them, they tell it much.
        interaction=InteractionConfig(
            num_points=2, num_mask_only_steps=1, box_probability=0.55, box_noise=0.04, box_noise_max=8.0
        ),
        loss=LossConfig(focal_alpha=0.6, supervise_all_iou=True, supervise_all_outputs=True, affinity_weight=1.0),
        # Without the affinity loss the encoder's output collapses at this learning rate; see `affinity_loss`.
        optim=OptimConfig(
            optimizer="muon",
            learning_rate=2.5e-3,
            b2=0.98,
            weight_decay=0.05,
            warmup_steps=200,
            cosine=True,
            layer_decay=0.95,
            clip_norm=1.0,
        ),
        storage_dtype="float16",
        workdir="runs/bundled",
    )
