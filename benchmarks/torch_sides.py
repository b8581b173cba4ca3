"""The sides of gpu_vs_torch.py that are not ours: the official code and Hugging Face's model, with the same weights."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from sam_jax.config import SamConfig
from sam_jax.convert.rules import official_name

Run = Callable[[], Any]


def choose_device() -> str:
    """The GPU if torch has one. Products of float32 are float32 from here on, as they are in ours: no TF32."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    return "cuda" if torch.cuda.is_available() else "cpu"


def wait(device: str) -> None:
    """Returns when the device has done everything."""
    if device == "cuda":
        torch.cuda.synchronize()


def hugging_face_config(config: SamConfig) -> Any:
    """The `SamConfig` of Hugging Face for a config of ours, or for HQ-SAM its `SamHQConfig`."""
    import transformers

    kind = "SamHQ" if config.is_hq else "Sam"
    e, d, dim = config.vit, config.mask_decoder, config.prompt_embed_dim
    vision = dict(
        hidden_size=e.embed_dim,
        output_channels=dim,
        num_hidden_layers=e.depth,
        num_attention_heads=e.num_heads,
        image_size=e.image_size,
        patch_size=e.patch_size,
        window_size=e.window_size,
        global_attn_indexes=list(e.global_attn_indexes),
        num_pos_feats=dim // 2,
        mlp_dim=int(e.embed_dim * e.mlp_ratio),
    )
    prompts = dict(
        hidden_size=dim,
        image_size=e.image_size,
        patch_size=e.patch_size,
        mask_input_channels=config.prompt_encoder.mask_in_chans,
    )
    decoder = dict(
        hidden_size=dim,
        mlp_dim=d.mlp_dim,
        num_hidden_layers=d.depth,
        num_attention_heads=d.num_heads,
        attention_downsample_rate=d.attention_downsample_rate,
        iou_head_depth=d.iou_head_depth,
        iou_head_hidden_dim=d.iou_head_hidden_dim,
        **({"vit_dim": e.embed_dim} if config.is_hq else {}),
    )
    parts = {"VisionConfig": vision, "PromptEncoderConfig": prompts, "MaskDecoderConfig": decoder}
    vision, prompts, decoder = (getattr(transformers, kind + name)(**part).to_dict() for name, part in parts.items())
    whole = getattr(transformers, f"{kind}Config")
    return whole(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder)


def build_hugging_face(config: SamConfig, official: torch.nn.Module) -> torch.nn.Module:
    """The `SamModel` of a config with the weights of the official model; attention is torch's
    `scaled_dot_product_attention`.

    Raises:
      ValueError: a tensor has no counterpart in the official model.
    """
    from transformers import SamModel

    model = SamModel._from_config(hugging_face_config(config), attn_implementation="sdpa")
    theirs, ours = official.state_dict(), model.state_dict()
    missing = [key for key in ours if official_name(key, ours) not in theirs]
    if missing:
        raise ValueError(f"tensors of SamModel without counterpart in the official model: {', '.join(missing)}")
    model.load_state_dict({key: theirs[official_name(key, ours)].reshape(x.shape) for key, x in ours.items()})
    return model.eval()


def as_dtype(model: torch.nn.Module, dtype: str, device: str) -> torch.nn.Module:
    """A copy in another dtype on the device; the official prompt encoder takes float32 alone."""
    model = copy.deepcopy(model).to(device, getattr(torch, dtype)).eval()
    if hasattr(getattr(model, "prompt_encoder", None), "pe_layer"):
        model.prompt_encoder.float()
    return model


def encode_official(model: torch.nn.Module, images: np.ndarray, device: str) -> Run:
    """Images (B, H, W, 3) -> embeddings (B, h, w, C) float32, by the official encoder, compiled or not."""
    x = _channels_first(images, model, device)
    return _waiting(lambda: model(x).permute(0, 2, 3, 1), device)


def encode_hugging_face(model: torch.nn.Module, images: np.ndarray, device: str) -> Run:
    """The same by Hugging Face's model."""
    x = _channels_first(images, model, device)
    return _waiting(lambda: model.get_image_embeddings(x).permute(0, 2, 3, 1), device)


def _channels_first(images: np.ndarray, model: torch.nn.Module, device: str) -> torch.Tensor:
    dtype = next(model.parameters()).dtype
    return torch.from_numpy(images).to(device, dtype).permute(0, 3, 1, 2).contiguous()


def _waiting(run: Run, device: str) -> Run:
    """`run` without gradients, which returns when the device has done it."""

    @torch.no_grad()
    def waiting() -> torch.Tensor:
        out = run()
        wait(device)
        return out

    return waiting


def decode_official(model: torch.nn.Module, embeddings: np.ndarray, coords: np.ndarray, device: str) -> Run:
    """`n` prompts of one point, coords (n, 1, 2) pixels of the model's input -> three low-resolution masks each."""
    dtype = next(model.parameters()).dtype
    embedding = torch.from_numpy(embeddings).to(device, dtype).permute(0, 3, 1, 2)
    points = (torch.from_numpy(coords).to(device), torch.ones(len(coords), 1, device=device))

    def decode() -> torch.Tensor:
        sparse, dense = model.prompt_encoder(points=points, boxes=None, masks=None)
        masks, _ = model.mask_decoder(
            image_embeddings=embedding,
            image_pe=model.prompt_encoder.get_dense_pe().to(dtype),
            sparse_prompt_embeddings=sparse.to(dtype),
            dense_prompt_embeddings=dense.to(dtype),
            multimask_output=True,
        )
        return masks

    return _waiting(decode, device)


def decode_hugging_face(model: torch.nn.Module, embeddings: np.ndarray, coords: np.ndarray, device: str) -> Run:
    """The same by Hugging Face's model."""
    dtype = next(model.parameters()).dtype
    embedding = torch.from_numpy(embeddings).to(device, dtype).permute(0, 3, 1, 2)
    points = torch.from_numpy(coords).to(device, dtype)[None]
    labels = torch.ones(points.shape[:3], dtype=torch.int64, device=device)

    def decode() -> torch.Tensor:
        given = {"image_embeddings": embedding, "input_points": points, "input_labels": labels}
        return model(**given, multimask_output=True).pred_masks[0]

    return _waiting(decode, device)


def as_array(x: Any) -> np.ndarray:
    """Results of any side as float32."""
    return x.float().cpu().numpy() if isinstance(x, torch.Tensor) else np.asarray(x, np.float32)
