"""Plain statements of formulas in float64 numpy, for tests to compare with. Slow and obvious on purpose."""

import numpy as np


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def attention_with_rel_pos(q, k, v, rel_h, rel_w):
    """(B, heads, h*w, D) attention whose logits get a bias per offset of rows and per offset of columns."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    h, w = len(rel_h), len(rel_w)
    rows, cols = np.divmod(np.arange(h * w), w)
    logits = np.einsum("bnqd,bnkd->bnqk", q, k) / np.sqrt(q.shape[-1])
    logits += np.einsum("bnqd,qkd->bnqk", q, np.asarray(rel_h, np.float64)[rows[:, None], rows[None, :]])
    logits += np.einsum("bnqd,qkd->bnqk", q, np.asarray(rel_w, np.float64)[cols[:, None], cols[None, :]])
    return np.einsum("bnqk,bnkd->bnqd", softmax(logits), v)
