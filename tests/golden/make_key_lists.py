"""Writes the keys and shapes of others' checkpoints, for tests that need neither torch nor transformers.

Run from the repository root: python -m tests.golden.make_key_lists
(needs the `oracle` extra, and `pip install transformers`).
"""

from __future__ import annotations

import json
from pathlib import Path

from sam_jax.config import (
    ImageEncoderConfig,
    MaskDecoderConfig,
    SamConfig,
    mobile_sam,
    sam_config_from_dict,
    to_dict,
    vit_b,
)
from tests.tiny import as_hq

HERE = Path(__file__).parent


def tiny_config() -> SamConfig:
    """A small model in which no two sizes agree by accident: every number has to be found where it belongs."""
    return SamConfig(
        image_encoder=ImageEncoderConfig(
            image_size=96,
            patch_size=8,
            embed_dim=48,
            depth=3,
            num_heads=3,
            mlp_ratio=3.0,
            window_size=5,
            global_attn_indexes=(1,),
        ),
        mask_decoder=MaskDecoderConfig(num_heads=4, mlp_dim=40, iou_head_depth=4, iou_head_hidden_dim=56),
        prompt_embed_dim=64,
    )


def build_hugging_face(config: SamConfig):
    """The `SamModel` of a config, or for HQ-SAM the `SamHQModel`, in eval mode."""
    import transformers

    from benchmarks.torch_sides import hugging_face_config

    model = transformers.SamHQModel if config.is_hq else transformers.SamModel
    return model(hugging_face_config(config)).eval()


def read_key_list(name: str) -> tuple[SamConfig, dict[str, tuple[int, ...]]]:
    """A committed list: the config, and shape by key."""
    content = json.loads((HERE / name).read_text())
    return sam_config_from_dict(content["config"]), {key: tuple(shape) for key, shape in content["shapes"].items()}


def _write_key_list(name: str, config: SamConfig, model) -> None:
    rows = [f"    {json.dumps(k)}: {json.dumps(list(v.shape))}" for k, v in model.state_dict().items()]
    shapes = ",\n".join(rows)
    text = f'{{\n  "config": {json.dumps(to_dict(config))},\n  "shapes": {{\n{shapes}\n  }}\n}}\n'
    (HERE / name).write_text(text)


def main() -> None:
    """Writes all lists beside this file."""
    from tests.oracle import build_official

    _write_key_list("official_vit_b_keys.json", vit_b(), build_official(vit_b()))
    _write_key_list("mobile_sam_keys.json", mobile_sam(), build_official(mobile_sam()))
    _write_key_list("hq_sam_keys.json", as_hq(tiny_config()), build_official(as_hq(tiny_config())))
    _write_key_list("hf_hq_sam_keys.json", as_hq(tiny_config()), build_hugging_face(as_hq(tiny_config())))
    _write_key_list("hf_sam_keys.json", tiny_config(), build_hugging_face(tiny_config()))


if __name__ == "__main__":
    main()
