"""The official PyTorch model with random weights, for tests marked `oracle`."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import re
import sys
import types
from typing import Any

import torch
from PIL import Image

from sam_jax.config import SamConfig


def build_official(config: SamConfig, seed: int = 0) -> torch.nn.Module:
    """The official `Sam` of a config, in eval mode, with every tensor random and none zero or one throughout."""
    _import_official()
    from segment_anything.modeling import PromptEncoder, Sam, TwoWayTransformer

    e, d, dim = config.image_encoder, config.mask_decoder, config.prompt_embed_dim
    image_encoder = _build_tiny_vit(config) if config.is_mobile else _build_vit(config)
    MaskDecoder = _hq_mask_decoder(config) if config.is_hq else _mask_decoder()
    prompt_encoder = PromptEncoder(
        embed_dim=dim,
        image_embedding_size=(e.grid_size, e.grid_size),
        input_image_size=(e.image_size, e.image_size),
        mask_in_chans=config.prompt_encoder.mask_in_chans,
    )
    transformer = TwoWayTransformer(
        depth=d.depth,
        embedding_dim=dim,
        mlp_dim=d.mlp_dim,
        num_heads=d.num_heads,
        attention_downsample_rate=d.attention_downsample_rate,
    )
    mask_decoder = MaskDecoder(
        num_multimask_outputs=d.num_multimask_outputs,
        transformer=transformer,
        transformer_dim=dim,
        iou_head_depth=d.iou_head_depth,
        iou_head_hidden_dim=d.iou_head_hidden_dim,
    )
    sam = Sam(image_encoder, prompt_encoder, mask_decoder, list(config.pixel_mean), list(config.pixel_std))
    randomise(sam, seed)
    return sam.eval()


def _mask_decoder() -> Any:
    from segment_anything.modeling import MaskDecoder

    return MaskDecoder


def _hq_mask_decoder(config: SamConfig) -> Any:
    _import_with_stand_ins("segment_anything_hq")
    from segment_anything_hq.modeling import MaskDecoderHQ

    early = config.image_encoder.widths[-2] if config.is_mobile else config.vit.embed_dim
    return functools.partial(MaskDecoderHQ, vit_dim=early)


def _build_vit(config: SamConfig) -> torch.nn.Module:
    if config.is_hq:
        _import_with_stand_ins("segment_anything_hq")
        from segment_anything_hq.modeling import ImageEncoderViT
    else:
        from segment_anything.modeling import ImageEncoderViT

    e = config.vit
    return ImageEncoderViT(
        depth=e.depth,
        embed_dim=e.embed_dim,
        img_size=e.image_size,
        mlp_ratio=e.mlp_ratio,
        norm_layer=functools.partial(torch.nn.LayerNorm, eps=1e-6),
        num_heads=e.num_heads,
        patch_size=e.patch_size,
        qkv_bias=True,
        use_rel_pos=True,
        global_attn_indexes=e.global_attn_indexes,
        window_size=e.window_size,
        out_chans=config.prompt_embed_dim,
    )


def _build_tiny_vit(config: SamConfig) -> torch.nn.Module:
    """MobileSAM's image encoder, of the package of HQ-SAM, which brings it along. Its `forward` gives a pair there."""
    _import_with_stand_ins("segment_anything_hq")
    from segment_anything_hq.modeling.tiny_vit_sam import TinyViT

    e = config.image_encoder
    assert config.prompt_embed_dim == 256, "its neck has 256 channels"
    return TinyViT(
        img_size=e.image_size,
        num_classes=1000,
        embed_dims=list(e.widths),
        depths=list(e.depths),
        num_heads=[1, *e.num_heads],
        window_sizes=[1, *e.window_sizes],
        mlp_ratio=e.mlp_ratio,
        drop_path_rate=0.0,
        mbconv_expand_ratio=e.expand_ratio,
    )


def encode_official(encoder: torch.nn.Module, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(1, 3, S, S) -> embeddings (1, C, h, h), and early features (1, h, h, E) of the encoders that give them.

    The `forward` of a TinyViT takes 64 x 64 cells for granted; this does not.
    """
    if not hasattr(encoder, "layers"):
        found = encoder(images)
        return (found[0], found[1][0]) if isinstance(found, tuple) else (found, None)
    x, early = encoder.patch_embed(images), []
    for layer in encoder.layers:
        x = layer(x)
        early.append(x)
    side = round(x.shape[1] ** 0.5)
    return encoder.neck(x.reshape(1, side, side, -1).permute(0, 3, 1, 2)), early[-3].reshape(1, side, side, -1)


def build_predictor(model: torch.nn.Module) -> Any:
    """The official `SamPredictor` of a model from `build_official`, for HQ-SAM its own."""
    if hasattr(model.mask_decoder, "hf_token"):
        from segment_anything_hq import SamPredictor
    else:
        from segment_anything import SamPredictor

    return SamPredictor(model)


def build_generator(model: torch.nn.Module, **options: Any) -> Any:
    """The official `SamAutomaticMaskGenerator` of a model from `build_official`, for HQ-SAM its own."""
    if hasattr(model.mask_decoder, "hf_token"):
        from segment_anything_hq import SamAutomaticMaskGenerator
    else:
        from segment_anything import SamAutomaticMaskGenerator

    return SamAutomaticMaskGenerator(model, **options)


def _box_area(boxes: torch.Tensor) -> torch.Tensor:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def _batched_nms(boxes: torch.Tensor, scores: torch.Tensor, idxs: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    """What torchvision's C++ does for one category: greedy, by stably falling score, strictly above the threshold."""
    assert not idxs.any()
    areas, kept = _box_area(boxes), []
    order = scores.sort(stable=True, descending=True).indices
    while len(order):
        best, order = order[0], order[1:]
        kept.append(best)
        low = torch.maximum(boxes[best, :2], boxes[order, :2])
        high = torch.minimum(boxes[best, 2:], boxes[order, 2:])
        overlap = (high - low).clamp(min=0).prod(dim=1)
        order = order[~(overlap / (areas[best] + areas[order] - overlap) > iou_threshold)]
    return torch.stack(kept) if kept else torch.zeros(0, dtype=torch.int64)


def randomise(model: torch.nn.Module, seed: int) -> None:
    """Fills every tensor of the state dict such that activations stay of order one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if not tensor.is_floating_point():
                continue
            noise = torch.randn(tensor.shape, generator=generator)
            tensor.copy_(noise * _scale(name, tensor) + (tensor.ndim == 1 and name.endswith(("weight", "running_var"))))


def _scale(name: str, tensor: torch.Tensor) -> float:
    if tensor.ndim < 2 or "rel_pos" in name or "pos_embed" in name:
        return 0.1
    embeddings = (
        r"(iou_token|mask_tokens|hf_token|point_embed\w*\.\d|not_a_point_embed|no_mask_embed)\.weight|positional_\w+"
    )
    return 1.0 if re.search(rf"(^|\.)({embeddings})$", name) else tensor[0].numel() ** -0.5


def _import_official() -> None:
    _import_with_stand_ins("segment_anything")


def _import_with_stand_ins(package: str) -> None:
    """Imports code of others; what it wants of torchvision and timm is stood in for where these are not installed."""
    if package in sys.modules:
        return
    resize = lambda image, size: image.resize(size[::-1], Image.Resampling.BILINEAR)  # noqa: E731
    pair = lambda value: value if isinstance(value, tuple) else (value, value)  # noqa: E731
    layers = {"DropPath": torch.nn.Identity, "to_2tuple": pair, "trunc_normal_": torch.nn.init.trunc_normal_}
    stand_ins = {
        "torchvision": {},
        "torchvision.ops": {},
        "torchvision.ops.boxes": {"batched_nms": _batched_nms, "box_area": _box_area},
        "torchvision.transforms": {},
        "torchvision.transforms.functional": {"to_pil_image": Image.fromarray, "resize": resize},
        "timm": {},
        "timm.models": {},
        "timm.models.layers": layers,
        "timm.models.registry": {"register_model": lambda function: function},
    }
    # timm is stood in for in any case: newer ones warn of the names that are wanted of it.
    absent = [name for name in stand_ins if name.startswith("timm") or not importlib.util.find_spec("torchvision")]
    before = {name: sys.modules[name] for name in absent if name in sys.modules}
    for name in absent:
        sys.modules[name] = types.ModuleType(name)
        vars(sys.modules[name]).update(stand_ins[name])
    try:
        importlib.import_module(package)
    finally:  # others look for them, too, and must not find these
        for name in absent:
            del sys.modules[name]
        sys.modules.update(before)
