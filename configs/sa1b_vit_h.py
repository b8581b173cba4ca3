"""The published recipe for ViT-H: sam-jax train sa1b_vit_h --data.path gs://BUCKET/sa1b

SAM paper, appendix A: 90,000 steps at batch 256, learning rate 8e-4 (x 0.1 at steps 60,000 and 86,666), layer decay .8,
drop path .4, up to 64 masks per image.
The encoder starts from MAE weights: sam-jax convert from-mae mae_pretrain_vit_huge.pth checkpoints/mae_vit_h
"""

from sam_jax.config import MeshConfig, OptimConfig, RecordDataConfig, StageConfig, TrainConfig, for_training, vit_h


def get_config() -> TrainConfig:
    """One image per chip on 256 chips, or several on fewer."""
    return TrainConfig(
        sam=for_training(vit_h(), dropout_rate=0.1, drop_path_rate=0.4),
        stages=(StageConfig(image_size=1024, batch_size=256, masks_per_image=64, num_steps=90_000),),
        data=RecordDataConfig(path="data/sa1b", num_workers=8),
        optim=OptimConfig(learning_rate=8e-4, weight_decay=0.1, layer_decay=0.8, warmup_steps=250),
        mesh=MeshConfig(fsdp=16),
        init_from="checkpoints/mae_vit_h",
        workdir="runs/sa1b_vit_h",
        log_every=50,
        eval_every=5_000,
        eval_images=1_024,
        overlay_every=5_000,
        checkpoint_every=1_000,
    )
