"""The bundled vit_tiny: sam-jax train bundled

Trains 7 M parameters on composites made on the fly, on a CPU. Small images come first: prompts are learned at 128 px
for a sixteenth of the cost, outlines at 256 px, and the last stage is at the native 512 px.
Before it, make the pool of cut-outs and images: sam-jax data pool data/pool
and label regions of its images with GrabCut: sam-jax data pool-label data/pool
"""

from sam_jax.config import (
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
    return TrainConfig(
        sam=vit_tiny(),
        stages=(
            StageConfig(128, 16, masks_per_image=6, num_steps=2500, num_points=0, mosaics=0.6, num_examples=12_000),
            StageConfig(256, 8, masks_per_image=6, num_steps=3500, num_points=0, mosaics=0.3, num_examples=8_000),
            StageConfig(256, 8, masks_per_image=6, num_steps=4_000, num_points=1, mosaics=0.1, num_examples=16_000),
            StageConfig(512, 4, masks_per_image=5, num_steps=2_400, num_points=1, mosaics=0.06, num_examples=8_000),
        ),
        # Easier images than the default: a small model learns more from a few large objects in a short training.
        data=CompositeDataConfig(
            pool="data/pool",
            composite=CompositeConfig(
                labelled=0.02,
                pseudo_regions=0.03,
                regions=0.2,
                max_objects=6,
                max_distractors=3,
                photo_region_object=0.08,
                region_object=0.3,
                parts=0.2,
                degrade=0.6,
            ),
        ),
        # Fewer interactions than the paper's eleven, to spend a CPU's time on the encoder. Without clicks and fed-back
        # masks in training, more clicks make masks worse.
        # Boxes are nearly tight: a small model gains much from boxes that it can trust.
        interaction=InteractionConfig(
            num_points=1, num_mask_only_steps=0, box_probability=0.6, box_noise=0.04, box_noise_max=8.0
        ),
        loss=LossConfig(focal_alpha=0.6, supervise_all_iou=True, supervise_all_outputs=True, affinity_weight=1.0),
        # Without the affinity loss the encoder's output collapses at this learning rate; see `affinity_loss`.
        optim=OptimConfig(
            optimizer="muon",
            learning_rate=1.2e-3,
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
