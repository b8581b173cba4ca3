"""The published recipe for ViT-L: sam-jax train sa1b_vit_l --data.path gs://BUCKET/sa1b

SAM paper, appendix A: 180,000 steps at batch 128, learning rate 4e-4, layer decay .8, drop path .4,
up to 64 masks per image.
The encoder starts from MAE weights: sam-jax convert from-mae mae_pretrain_vit_large.pth checkpoints/mae_vit_l
The paper does not say when ViT-L's learning rate drops; the milestones are ViT-H's, as shares of the training.
"""

from sam_jax.config import MeshConfig, OptimConfig, RecordDataConfig, StageConfig, TrainConfig, for_training, vit_l


def get_config() -> TrainConfig:
    """One image per chip on 128 chips, or several on fewer."""
    return TrainConfig(
        sam=for_training(vit_l(), dropout_rate=0.1, drop_path_rate=0.4),
        stages=(StageConfig(image_size=1024, batch_size=128, masks_per_image=64, num_steps=180_000),),
        data=RecordDataConfig(path="data/sa1b", num_workers=8),
        optim=OptimConfig(learning_rate=4e-4, weight_decay=0.1, layer_decay=0.8, warmup_steps=250),
        mesh=MeshConfig(fsdp=4),
        init_from="checkpoints/mae_vit_l",
        workdir="runs/sa1b_vit_l",
        log_every=50,
        eval_every=5_000,
        eval_images=1_024,
        overlay_every=5_000,
        checkpoint_every=1_000,
    )
