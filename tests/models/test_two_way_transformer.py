"""The attention between few tokens and many pixels, against a plain statement with every projection spelled out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sam_jax.models.two_way_transformer import Attention

B, N, C, HEADS, INNER, S = 2, 3, 32, 4, 16, 15
# Below and above what folds; and pixels of each prompt's own, or shared by all prompts of an image.
CASES = [(tokens, owners) for tokens in (3, 9) for owners in (N, 1)]


def _random(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _params():
    shapes = {"q_proj": (C, INNER), "k_proj": (C, INNER), "v_proj": (C, INNER), "out_proj": (INNER, C)}
    return {
        name: {"kernel": _random(i, *shape) / np.float32(np.sqrt(shape[0])), "bias": _random(10 + i, shape[1])}
        for i, (name, shape) in enumerate(shapes.items())
    }


def _plain(params, queries, keys, values, valid=None):
    """Multi-head attention of (B, N, Q, C) to (B, N, K, C), with flags (B, N, K) for what may be read."""

    def heads(name, x):
        x = jnp.einsum("bnsc,ci->bnsi", x, params[name]["kernel"], precision="highest") + params[name]["bias"]
        return x.reshape(*x.shape[:3], HEADS, -1)

    q, k, v = heads("q_proj", queries), heads("k_proj", keys), heads("v_proj", values)
    logits = jnp.einsum("bnqhd,bnkhd->bnhqk", q, k, precision="highest") / np.sqrt(INNER / HEADS)
    if valid is not None:
        logits = jnp.where(valid[:, :, None, None, :], logits, -jnp.inf)
    out = jnp.einsum("bnhqk,bnkhd->bnqhd", jax.nn.softmax(logits), v, precision="highest")
    return out.reshape(*out.shape[:3], INNER) @ params["out_proj"]["kernel"] + params["out_proj"]["bias"]


def _agree(ours, plain, *args):
    (one, back), (other, plain_back) = jax.vjp(ours, *args), jax.vjp(plain, *args)
    np.testing.assert_allclose(one, other, atol=1e-5)
    cotangent = _random(99, *other.shape)
    for a, b in zip(*(jax.tree.leaves(f(cotangent)) for f in (back, plain_back)), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize(("length", "owners"), CASES)
def test_tokens_read_from_pixels(length, owners):
    tokens, keys, values = _random(1, B, N, length, C), _random(2, B, owners, C, S), _random(3, B, owners, C, S)

    def ours(params, *args):
        return Attention(C, HEADS, 2).apply({"params": params}, *args, method="tokens_to_pixels")

    def plain(params, tokens, keys, values):
        keys, values = (jnp.broadcast_to(x.swapaxes(-1, -2), (B, N, S, C)) for x in (keys, values))
        return _plain(params, tokens, keys, values)

    assert Attention(C, HEADS, 2)._folds(length) == (length == 3)
    _agree(ours, plain, _params(), tokens, keys, values)


@pytest.mark.parametrize(("length", "owners"), CASES)
def test_pixels_read_from_tokens(length, owners):
    pixels, keys, values = _random(1, B, owners, C, S), _random(2, B, N, length, C), _random(3, B, N, length, C)
    valid = np.random.default_rng(4).random((B, N, length)) < 0.7
    valid[..., 0] = True

    def ours(params, *args):
        return Attention(C, HEADS, 2).apply({"params": params}, *args, valid, method="pixels_to_tokens")

    def plain(params, pixels, keys, values):
        pixels = jnp.broadcast_to(pixels.swapaxes(-1, -2), (B, N, S, C))
        return _plain(params, pixels, keys, values, valid).swapaxes(-1, -2)

    assert not valid.all()
    _agree(ours, plain, _params(), pixels, keys, values)
