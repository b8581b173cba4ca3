"""State dicts of other programs: removes prefixes, and rejects networks that only look like SAM."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from sam_jax.convert.errors import ConversionError

# Parts that wrappers (DataParallel, torch.compile) insert into a tensor's name, at any position.
WRAPPER_PARTS = ("module", "_orig_mod")
# SAM's own top-level modules, in the official code and in Hugging Face: never a prefix, even if a file has only one.
PARTS = {"image_encoder", "vision_encoder", "prompt_encoder", "mask_decoder", "shared_image_embedding", "blocks"}


class Relative(NamedTuple):
    """A network derived from SAM: a pattern of keys that only it has, its name, and what to do."""

    pattern: str
    name: str
    advice: str


_OTHER = "convert a file of the original SAM, such as sam_vit_b_01ec64.pth"
RELATIVES = (
    Relative(
        r"(image_encoder|vision_encoder)\.(trunk|backbone\.blocks)\..*|memory_(attention|encoder)\..*",
        "SAM 2, which is another network",
        _OTHER,
    ),
    Relative(r"(detector|tracker|tracker_model|detector_model)\..*", "SAM 3, which is another network", _OTHER),
    Relative(
        r"image_encoder\.(stages|features|backbone|stem|body)\..*",
        "a SAM with a convolutional image encoder (EfficientViT-SAM, EdgeSAM, RepViT-SAM)",
        _OTHER,
    ),
    Relative(
        r"(mask_decoder\.final_output_upscaling_layers|prompt_encoder\.(invalid_points|bbox_\w+_embeddings))\..*",
        "EfficientSAM, which has its own prompt encoder and mask decoder",
        _OTHER,
    ),
    Relative(
        r".*\.(lora_\w+|linear_[ab]_[qv]|w_[ab]_\d+|lora)(\..*)?|w_[ab]_\d+",
        "SAM with LoRA weights that are not merged",
        "merge them into the weights and save the plain state dict",
    ),
    Relative(
        r".*(\.|_)[Aa]dapter(s|_\w+)?\..*|image_encoder\.prompt_generator\..*|.*\.(up|down)_fn\..*",
        "SAM with adapters, which are layers that SAM does not have",
        _OTHER,
    ),
)


def without_prefixes(tensors: dict[str, Any]) -> dict[str, Any]:
    """The same tensors without the prefixes that wrappers and surrounding modules put into their names.

    Removes `module` and `_orig_mod` at any position, then the part before the first dot, as long as all names share it
    and it is not one of SAM's modules.

    Raises:
      ConversionError: two tensors would have the same name.
    """
    names = {key: ".".join(part for part in key.split(".") if part not in WRAPPER_PARTS) for key in tensors}
    while len(first := {name.split(".", 1)[0] for name in names.values()}) == 1 and not first & PARTS:
        if not all("." in name for name in names.values()):
            break
        names = {key: name.split(".", 1)[1] for key, name in names.items()}
    found: dict[str, str] = {}
    for key, name in names.items():
        if found.setdefault(name, key) != key:
            raise ConversionError(f"{found[name]} and {key} are two tensors for {name}; remove one of them")
    return {name: tensors[key] for name, key in found.items()}


def refuse_relatives(keys: Iterable[str], relatives: Sequence[Relative] = RELATIVES) -> None:
    """Raises ConversionError if a key shows that this is a network derived from the wanted one, or another."""
    keys = list(keys)
    for relative in relatives:
        matching = [key for key in keys if re.fullmatch(relative.pattern, key)]
        if matching:
            raise ConversionError(
                f"looks like {relative.name} ({len(matching)} of its {len(keys)} tensors, such as {matching[0]}); "
                f"{relative.advice}"
            )
