"""Writes official.npz: a tiny official model with random weights, and what each of its stages takes and gives.

    python -m tests.golden.make_goldens

Needs the `oracle` extra. Names inside read as paths: state/<official key>, encoder/<stage>, prompts/<kind>/<field>,
decoder/<kind>/<stage>, postprocess/<case>/<name>. Layouts are those of the official code: images and embeddings NCHW,
encoder blocks NHWC.
"""

from pathlib import Path

import numpy as np
import torch

from tests.oracle import build_official
from tests.tiny import TINY

FILE = Path(__file__).with_name("official.npz")
SIDE, LOW = TINY.image_size, TINY.image_size // 4
# name: size of the image, and its size in the input frame.
POSTPROCESS = {"smaller": ((37, 53), (56, 80)), "larger": ((149, 113), (80, 61))}


def make_prompts(rng):
    """Two prompts of every kind, as the official prompt encoder takes them."""
    points = rng.uniform(0, SIDE, (2, 3, 2)).astype(np.float32)
    labels = np.array([[1, 0, 1], [0, 1, 1]])
    boxes = np.sort(rng.uniform(0, SIDE, (2, 2, 2)).astype(np.float32), axis=1).reshape(2, 4)
    masks = 5 * rng.standard_normal((2, 1, LOW, LOW)).astype(np.float32)
    one_point = {"point_coords": points[:, :1], "point_labels": np.ones((2, 1), int)}
    return {
        "one_point": one_point,
        "three_points": {"point_coords": points, "point_labels": labels},
        "box": {"boxes": boxes},
        "box_negative": {"boxes": boxes, "point_coords": points[:, 1:2], "point_labels": np.zeros((2, 1), int)},
        "mask": {"mask_inputs": masks},
        "point_mask": one_point | {"mask_inputs": masks},
    }


def _recorder(record, name):
    def hook(_module, _inputs, output):
        outputs = output if isinstance(output, tuple) else (output,)
        for suffix, value in zip(("", "_pixels"), outputs, strict=False):
            record[name + suffix] = value.numpy().copy()

    return hook


def run_encoder(sam, images):
    """Outputs of all stages of the image encoder. A frame of another size needs a position table of that size."""
    encoder, record = sam.image_encoder, {"images": images}
    hooks = [encoder.blocks[0].register_forward_pre_hook(lambda _m, x: _recorder(record, "embedded")(_m, x, x[0]))]
    hooks += [block.register_forward_hook(_recorder(record, f"blocks_{i}")) for i, block in enumerate(encoder.blocks)]
    record["embeddings"] = encoder(torch.from_numpy(images)).numpy()
    for hook in hooks:
        hook.remove()
    return record


def run_decoder(sam, embeddings, prompts):
    """Outputs of prompt encoder, two-way transformer and mask decoder, with and without multimask_output."""
    given = {name: torch.from_numpy(value) for name, value in prompts.items()}
    points = (given["point_coords"], given["point_labels"]) if "point_coords" in given else None
    sparse, dense = sam.prompt_encoder(points, given.get("boxes"), given.get("mask_inputs"))
    record = {"sparse": sparse.numpy(), "dense": dense.numpy()}
    hook = sam.mask_decoder.transformer.register_forward_hook(_recorder(record, "transformer"))
    for multimask in (True, False):
        masks, ious = sam.mask_decoder(
            torch.from_numpy(embeddings), sam.prompt_encoder.get_dense_pe(), sparse, dense, multimask
        )
        name = "multimask" if multimask else "single"
        record |= {f"{name}/low_res_masks": masks.numpy(), f"{name}/iou_predictions": ious.numpy()}
    hook.remove()
    return record


def resize_pos_embed(sam, grid):
    """The official model's position table, interpolated as those who change the input size do in PyTorch."""
    table = sam.image_encoder.pos_embed.permute(0, 3, 1, 2)
    table = torch.nn.functional.interpolate(table, grid, mode="bicubic", align_corners=False)
    sam.image_encoder.pos_embed = torch.nn.Parameter(table.permute(0, 2, 3, 1))


def make_arrays():
    """All arrays by their path."""
    rng, sam = np.random.default_rng(0), build_official(TINY)
    images = rng.standard_normal((1, 3, SIDE, SIDE)).astype(np.float32)
    images[:, :, 56:] = 0  # padding
    groups = {"state": {key: tensor.numpy().copy() for key, tensor in sam.state_dict().items()}}
    groups["encoder"] = run_encoder(sam, images)
    groups["image"] = {"pe": sam.prompt_encoder.get_dense_pe().numpy()}
    for kind, prompts in make_prompts(rng).items():
        groups[f"prompts/{kind}"] = prompts
        groups[f"decoder/{kind}"] = run_decoder(sam, groups["encoder"]["embeddings"], prompts)
    masks = groups["decoder/box"]["single/low_res_masks"]
    for name, (original, size) in POSTPROCESS.items():
        logits = sam.postprocess_masks(torch.from_numpy(masks), size, original).numpy()
        groups[f"postprocess/{name}"] = {"original_size": original, "input_size": size, "logits": logits}
    resize_pos_embed(sam, (4, 7))
    groups["encoder_wide"] = run_encoder(sam, rng.standard_normal((1, 3, 64, 112)).astype(np.float32))
    return {f"{group}/{name}": np.asarray(value) for group, arrays in groups.items() for name, value in arrays.items()}


def main():
    """Writes the file."""
    with torch.no_grad():
        arrays = make_arrays()
    np.savez_compressed(FILE, **arrays)
    print(f"{FILE}: {len(arrays)} arrays, {FILE.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
