"""MAE encoders become the trunk of a fresh SAM, tensor by tensor. The checkpoints are small and random."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from sam_jax.checkpoint import load_model
from sam_jax.cli import convert as convert_command
from sam_jax.config import vit_b, vit_h, vit_l
from sam_jax.convert import mae_to_flax
from sam_jax.convert.mae_to_flax import infer_size, load_mae
from sam_jax.models.image_encoder import Block, PatchEmbed
from sam_jax.models.sam import Sam, init_variables
from tests.tiny import TINY

pytestmark = pytest.mark.oracle  # needs torch

# Three heads of 12, an MLP three times as wide, blocks that all attend globally.
CONFIG = dataclasses.replace(
    TINY,
    image_encoder=dataclasses.replace(
        TINY.image_encoder, embed_dim=36, depth=2, num_heads=3, mlp_ratio=3.0, global_attn_indexes=(0, 1)
    ),
)
WIDTH, GRID = CONFIG.image_encoder.embed_dim, CONFIG.image_encoder.grid_size
LAYERS = {"norm1": (36,), "attn.qkv": (108, 36), "attn.proj": (36, 36), "norm2": (36,)}
LAYERS |= {"mlp.fc1": (108, 36), "mlp.fc2": (36, 108)}


def mae_state(grid=GRID, patch=16, full=False, seed=0):
    """A random state dict with MAE's names: the encoder alone, or a full pre-training checkpoint."""
    import torch

    shapes = {"cls_token": (1, 1, WIDTH), "pos_embed": (1, 1 + grid * grid, WIDTH)}
    shapes |= {"patch_embed.proj.weight": (WIDTH, 3, patch, patch), "patch_embed.proj.bias": (WIDTH,)}
    for name, shape in LAYERS.items():
        for i in range(2):
            shapes |= {f"blocks.{i}.{name}.weight": shape, f"blocks.{i}.{name}.bias": shape[:1]}
    shapes |= {"norm.weight": (WIDTH,), "norm.bias": (WIDTH,)}
    if full:
        shapes |= {"mask_token": (1, 1, 24), "decoder_pos_embed": (1, 1 + grid * grid, 24)}
        shapes |= {"decoder_embed.weight": (24, WIDTH), "decoder_blocks.0.attn.qkv.weight": (72, 24)}
        shapes |= {"decoder_norm.bias": (24,), "decoder_pred.weight": (3 * patch**2, 24)}
    generator = torch.Generator().manual_seed(seed)
    return {
        key: torch.randn(shape, generator=generator) * shape[-1] ** -0.5 + (len(shape) == 1 and key.endswith("weight"))
        for key, shape in shapes.items()
    }


@pytest.fixture(autouse=True)
def small_size(monkeypatch):
    monkeypatch.setattr(mae_to_flax, "SIZES", mae_to_flax.SIZES | {"small": CONFIG})


@pytest.fixture
def convert(tmp_path):
    """Writes a checkpoint and loads it as SAM; returns the flat image encoder."""
    import torch

    def run(content, **options):
        torch.save(content, tmp_path / "mae.pth")
        config, variables = load_mae(tmp_path / "mae.pth", **options)
        assert config == CONFIG
        return flatten_dict(variables["params"]["image_encoder"], sep="/")

    return run


def mae_block(state, index, x):
    """A block of MAE in plain torch, (B, L, C) -> (B, L, C): pre-norm, biases throughout, no relative positions."""
    import torch
    from torch.nn import functional as F

    p = {key.removeprefix(f"blocks.{index}."): value for key, value in state.items()}
    y = F.layer_norm(x, (WIDTH,), p["norm1.weight"], p["norm1.bias"], 1e-6)
    qkv = F.linear(y, p["attn.qkv.weight"], p["attn.qkv.bias"])
    q, k, v = qkv.reshape(*x.shape[:2], 3, 3, WIDTH // 3).permute(2, 0, 3, 1, 4)
    y = torch.softmax(q @ k.transpose(-1, -2) * (WIDTH // 3) ** -0.5, dim=-1) @ v
    x = x + F.linear(y.transpose(1, 2).reshape(x.shape), p["attn.proj.weight"], p["attn.proj.bias"])
    y = F.layer_norm(x, (WIDTH,), p["norm2.weight"], p["norm2.bias"], 1e-6)
    y = F.gelu(F.linear(y, p["mlp.fc1.weight"], p["mlp.fc1.bias"]))
    return x + F.linear(y, p["mlp.fc2.weight"], p["mlp.fc2.bias"])


def test_the_trunk_computes_what_mae_does(tmp_path):
    """Without its class token, on MAE's own grid, before anything is trained: relative positions start at zero."""
    import torch

    state = mae_state()
    torch.save({"model": state}, tmp_path / "mae.pth")
    config, variables = load_mae(tmp_path / "mae.pth")
    params, encoder = variables["params"]["image_encoder"], config.image_encoder
    images = np.random.default_rng(0).standard_normal((2, 80, 80, 3)).astype(np.float32)

    ours = PatchEmbed(encoder, np.float32).apply({"params": params["patch_embed"]}, images) + params["pos_embed"]
    planes = torch.from_numpy(images).permute(0, 3, 1, 2)
    kernel, bias = state["patch_embed.proj.weight"], state["patch_embed.proj.bias"]
    theirs = torch.nn.functional.conv2d(planes, kernel, bias, stride=16).flatten(2).transpose(1, 2)
    theirs = theirs + state["pos_embed"][:, 1:]
    for i in range(encoder.depth):
        np.testing.assert_allclose(ours, theirs.reshape(ours.shape), rtol=0, atol=2e-5)
        ours = jax.jit(Block(encoder, i, np.float32).apply)({"params": params[f"blocks_{i}"]}, ours)
        theirs = mae_block(state, i, theirs)
    np.testing.assert_allclose(ours, theirs.reshape(ours.shape), rtol=0, atol=2e-5)


def test_positions_and_patch_kernel_are_resized_as_torch_does(convert):
    """ViT-H's case: patches of 14 on a grid that is not SAM's."""
    from torch.nn.functional import interpolate

    state = mae_state(grid=3, patch=14)
    ours = convert({"model": state})
    options = {"mode": "bicubic", "align_corners": False}
    positions = interpolate(
        state["pos_embed"][:, 1:].reshape(1, 3, 3, WIDTH).permute(0, 3, 1, 2), (GRID, GRID), **options
    )
    np.testing.assert_allclose(ours["pos_embed"], positions.permute(0, 2, 3, 1), atol=1e-6)
    kernel = interpolate(state["patch_embed.proj.weight"], (16, 16), **options)
    np.testing.assert_allclose(ours["patch_embed/proj/kernel"], kernel.permute(2, 3, 1, 0), atol=1e-6)


@pytest.mark.parametrize("full", [False, True])
def test_all_that_mae_lacks_is_fresh(convert, full):
    state = mae_state(full=full)
    content = {"model": state, "epoch": 800} if full else state
    ours = convert(content, seed=3)
    fresh = init_variables(Sam(CONFIG), jax.random.key(3))["params"]["image_encoder"]
    for path, leaf in flatten_dict(fresh, sep="/").items():
        is_fresh = path.startswith("neck") or "rel_pos" in path
        assert np.array_equal(ours[path], leaf) == is_fresh, path
    np.testing.assert_array_equal(ours["blocks_1/mlp/lin1/kernel"], state["blocks.1.mlp.fc1.weight"].T)
    assert (ours["neck_0/kernel"] != convert(content, seed=4)["neck_0/kernel"]).any()


def test_half_precision_is_cast(convert):
    state = mae_state(patch=14)
    rounded = {key: value.half().float() for key, value in state.items()}
    ours, expected = (convert(content) for content in ({k: v.half() for k, v in state.items()}, rounded))
    jax.tree.map(np.testing.assert_array_equal, ours, expected)


@pytest.mark.parametrize(("expected", "width", "depth"), [(vit_b, 768, 12), (vit_l, 1024, 24), (vit_h, 1280, 32)])
def test_size_is_inferred(expected, width, depth):
    shapes = {"pos_embed": (1, 197, width)} | {f"blocks.{i}.norm1.bias": (width,) for i in range(depth)}
    assert infer_size(shapes) == expected()


def refusal(folder, content, capsys):
    """The one line with which the command refuses a checkpoint; it leaves nothing behind."""
    import torch

    torch.save(content, folder / "bad.pth")
    code = convert_command.main(["from-mae", str(folder / "bad.pth"), str(folder / "out")])
    out, err = capsys.readouterr()
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"sam-jax convert from-mae: {folder / 'bad.pth'}")
    assert [path.name for path in folder.iterdir()] == ["bad.pth"]
    return err


def test_missing_and_unknown_tensors_are_all_named(tmp_path, capsys):
    import torch

    state = mae_state(full=True)
    del state["blocks.1.attn.qkv.bias"], state["patch_embed.proj.bias"]
    error = refusal(tmp_path, state | {"head.weight": torch.ones(9, WIDTH), "norm3.bias": torch.ones(2)}, capsys)
    assert (
        "missing: blocks.1.attn.qkv.bias, patch_embed.proj.bias; not part of an MAE: head.weight, norm3.bias" in error
    )


def test_faulty_tensors_are_named(tmp_path, capsys):
    import torch

    def expect(message, **changes):
        state = mae_state() | {key.replace("__", "."): value for key, value in changes.items()}
        assert message in refusal(tmp_path, state, capsys)

    expect(
        "misshapen: blocks.0.mlp.fc2.weight is (36, 9), expected (36, 108) for this size",
        blocks__0__mlp__fc2__weight=torch.ones(36, 9),
    )
    expect("pos_embed holds 25 positions", pos_embed=torch.ones(1, 25, 36))
    expect("shape (36, 3, 16, 8); expected (width, 3, k, k)", patch_embed__proj__weight=torch.ones(36, 3, 16, 8))
    expect("blocks.0.norm1.bias holds NaN or infinity", blocks__0__norm1__bias=torch.full((36,), torch.nan))
    expect("2 blocks of width 40, which is none of SAM's encoders (vit_b 12 x 768,", pos_embed=torch.ones(1, 26, 40))


def test_other_networks_are_refused(tmp_path, capsys):
    import torch

    error = refusal(tmp_path, {"image_encoder.pos_embed": torch.ones(1, 2, 2, 3)}, capsys)
    assert "its 1 tensors are others (image_encoder.pos_embed, ...); give an MAE file such as" in error


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_file_that_carries_code_is_refused_and_does_not_run(tmp_path, capsys):
    error = refusal(tmp_path, {"model": {"pos_embed": Payload(str(tmp_path / "ran"))}}, capsys)
    assert "contains code" in error
    assert not (tmp_path / "ran").exists()


def test_training_can_start_from_what_the_command_writes(tmp_path, capsys):
    import torch

    torch.save({"model": mae_state(grid=3, patch=14)}, tmp_path / "mae.pth")
    args = ["from-mae", str(tmp_path / "mae.pth"), str(tmp_path / "sam"), "--seed", "7"]
    assert convert_command.main(args) == 0
    assert "the encoder of small" in capsys.readouterr().out
    model, variables = load_model(tmp_path / "sam")
    assert model.config == CONFIG
    jax.tree.map(np.testing.assert_array_equal, variables, load_mae(tmp_path / "mae.pth", seed=7)[1])
    assert convert_command.main(args) == 2
    assert f"{tmp_path / 'sam'} exists already; remove it" in capsys.readouterr().err


def test_the_command_line(tmp_path):
    command = [sys.executable, "-m", "convert.mae_to_flax", str(tmp_path / "none.pth"), str(tmp_path / "sam")]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert "none.pth does not exist" in done.stderr
