"""The attention between few tokens and many pixels, against a plain statement with every projection spelled out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from sam_jax.models.planes import PlaneNorm
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


@pytest.mark.long
@pytest.mark.parametrize(("length", "owners"), CASES)
def test_tokens_read_from_pixels(length, owners):
    tokens, pixels, image_pe = _random(1, B, N, length, C), _random(2, B, owners, C, S), _random(3, 1, 1, C, S)

    def ours(params, *args):
        return Attention(C, HEADS, 2).apply({"params": params}, *args, method="tokens_to_pixels")[0]

    def plain(params, tokens, pixels, image_pe):
        seen = pixels + jax.lax.stop_gradient(image_pe)
        keys, values = (jnp.broadcast_to(x.swapaxes(-1, -2), (B, N, S, C)) for x in (seen, pixels))
        return _plain(params, tokens, keys, values)

    assert Attention(C, HEADS, 2)._folds(length) == (length == 3)
    _agree(ours, plain, _params(), tokens, pixels, image_pe)


class Update(nn.Module):
    """Attention and the norm that it needs."""

    def setup(self):
        self.attention, self.norm = Attention(C, HEADS, 2), PlaneNorm(C, 1e-5)

    def __call__(self, *args):
        return self.attention.pixels_to_tokens(*args, self.norm, drop=None)


@pytest.mark.parametrize(("length", "owners"), CASES)
def test_pixels_read_from_tokens_and_are_normalised(length, owners):
    pixels, image_pe = _random(1, B, owners, C, S), _random(5, 1, 1, C, S)
    keys, values = _random(2, B, N, length, C), _random(3, B, N, length, C)
    valid = np.random.default_rng(4).random((B, N, length)) < 0.7
    valid[..., 0] = True
    params = {"attention": _params(), "norm": {"scale": _random(20, C), "bias": _random(21, C)}}

    def ours(params, *args):
        return Update().apply({"params": params}, *args, valid)

    def plain(params, pixels, image_pe, keys, values):
        seen = pixels + jax.lax.stop_gradient(image_pe)
        many, seen = (jnp.broadcast_to(x.swapaxes(-1, -2), (B, N, S, C)) for x in (pixels, seen))
        updated = many + _plain(params["attention"], seen, keys, values, valid)
        norm = nn.LayerNorm(epsilon=1e-5, use_fast_variance=False)
        return norm.apply({"params": params["norm"]}, updated).swapaxes(-1, -2)

    assert not valid.all()
    _agree(ours, plain, params, pixels, image_pe, keys, values)
