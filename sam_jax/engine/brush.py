"""Masks as Label Studio's brush stores them: a bit stream of runs of an RGBA image, row by row, its alpha the mask.

The stream: 32 bits, how many values there are; 5 bits, the bits of a value less one; four times 4 bits, the sizes of
lengths less one. Then groups: a bit, 1 for a run and 0 for single values; 2 bits that choose the size of the length;
the length less one; and the value of the run, or all single ones.
Source of the format: the package rle-pack of thi.ng/umbrella, which Label Studio uses.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

CHANNELS = 4
OPAQUE = 255
_WORD = 8
_SIZES = (3, 4, 8, 16)  # bits of a length that we write


def encode_brush(mask: np.ndarray) -> list[int]:
    """(H, W) bool -> bytes of the stream, 0 to 255: 255 in all channels on the mask, 0 off it."""
    flat = mask.ravel()
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    lengths = CHANNELS * np.diff(np.append(starts, flat.size))
    parts = [f"{CHANNELS * flat.size:032b}", f"{_WORD - 1:05b}", *(f"{size - 1:04b}" for size in _SIZES)]
    for value, length in zip(flat[starts].tolist(), lengths.tolist(), strict=True):
        word = f"{OPAQUE * value:0{_WORD}b}"
        while length:
            taken = min(length, 2 ** _SIZES[-1])
            choice = next(number for number, size in enumerate(_SIZES) if taken <= 2**size)
            parts.append(f"1{choice:02b}{taken - 1:0{_SIZES[choice]}b}{word}")
            length -= taken
    bits = "".join(parts)
    bits += "0" * (-len(bits) % 8)
    return list(int(bits, 2).to_bytes(len(bits) // 8, "big"))


def decode_brush(rle: Sequence[int], size: tuple[int, int]) -> np.ndarray:
    """The bytes of a stream -> (H, W) bool: the pixels that are not fully transparent.

    Raises:
      ValueError: it is no such stream, or of another size.
    """
    try:
        stream = _Bits(bytes(rle))
    except (TypeError, ValueError):
        raise ValueError("a brush's rle must be a list of bytes, 0 to 255") from None
    count = stream.read(32)
    if count != CHANNELS * size[0] * size[1]:
        raise ValueError(f"a brush's rle has {count} values; expected {size[0]} x {size[1]} x {CHANNELS}")
    word, sizes = stream.read(5) + 1, [stream.read(4) + 1 for _ in range(4)]
    values, place = np.zeros(count, bool), 0
    while place < count:
        is_run = stream.read(1)
        end = place + 1 + stream.read(sizes[stream.read(2)])
        if end > count:
            raise ValueError(f"a brush's rle has more than the {count} values that it announces")
        if is_run:
            values[place:end] = stream.read(word) > 0
        else:
            values[place:end] = [stream.read(word) > 0 for _ in range(end - place)]
        place = end
    return values.reshape(*size, CHANNELS)[:, :, -1].copy()


class _Bits:
    """Numbers of a stream of bits, the highest bit first."""

    def __init__(self, content: bytes) -> None:
        self._content, self._place = content, 0

    def read(self, bits: int) -> int:
        """The next number. Raises ValueError at the end."""
        end = self._place + bits
        if end > 8 * len(self._content):
            raise ValueError("a brush's rle ends too early")
        part = int.from_bytes(self._content[self._place // 8 : (end + 7) // 8], "big")
        self._place = end
        return (part >> (-end % 8)) & ((1 << bits) - 1)
