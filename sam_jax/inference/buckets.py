"""Padded counts, so that any use compiles only a few programs."""

from __future__ import annotations


def bucket_size(count: int, buckets: tuple[int, ...]) -> int:
    """The smallest of rising `buckets` that holds `count`; beyond the last, a multiple of it."""
    for size in buckets:
        if count <= size:
            return size
    return -(-count // buckets[-1]) * buckets[-1]
