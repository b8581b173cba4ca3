"""Label Studio's brush, beside a plain statement of its format: a text of bits."""

import numpy as np
import pytest

from sam_jax.engine.brush import decode_brush, encode_brush


def read_bits(rle):
    """All values of a stream."""
    bits, place = "".join(f"{byte:08b}" for byte in rle), 0

    def read(count):
        nonlocal place
        place += count
        return int(bits[place - count : place], 2)

    total, word = read(32), read(5) + 1
    sizes = [read(4) + 1 for _ in range(4)]
    values = []
    while len(values) < total:
        run = read(1)
        length = read(sizes[read(2)]) + 1
        values += [read(word)] * length if run else [read(word) for _ in range(length)]
    return values


def blob(size, seed):
    rng = np.random.default_rng(seed)
    return np.kron(rng.random((size[0] // 4 + 1, size[1] // 4 + 1)) > 0.5, np.ones((4, 4)))[: size[0], : size[1]] > 0


MASKS = {
    "nothing": np.zeros((7, 9), bool),
    "everything": np.ones((150, 160), bool),  # runs longer than a length can say
    "first and last": np.arange(63).reshape(7, 9) % 62 == 0,
    "blobs": blob((50, 37), 0),
    "noise": np.random.default_rng(1).random((13, 31)) > 0.5,
}


@pytest.mark.parametrize("name", MASKS)
def test_a_mask_goes_and_comes_back(name):
    mask = MASKS[name]
    rle = encode_brush(mask)
    assert all(isinstance(byte, int) and 0 <= byte <= 255 for byte in rle)
    values = np.array(read_bits(rle)).reshape(*mask.shape, 4)
    assert np.array_equal(values, np.repeat(mask[..., None] * 255, 4, axis=2))
    assert np.array_equal(decode_brush(rle, mask.shape), mask)


def test_streams_of_others():
    """Single values, other sizes of lengths, colours, half transparent pixels."""
    pixels = [(9, 9, 9, 0), (1, 2, 3, 200), (0, 0, 0, 1), (255, 255, 255, 0), (7, 7, 7, 7), (7, 7, 7, 7)]
    values = [value for pixel in pixels for value in pixel]
    bits = f"{24:032b}{7:05b}" + "".join(f"{size - 1:04b}" for size in (2, 5, 6, 7))
    bits += f"001{15:05b}" + "".join(f"{value:08b}" for value in values[:16])  # sixteen single ones
    bits += f"1{3:02b}{7:07b}{7:08b}"  # a run of eight
    bits += "0" * (-len(bits) % 8)
    rle = [int(bits[start : start + 8], 2) for start in range(0, len(bits), 8)]
    assert read_bits(rle) == values
    assert decode_brush(rle, (2, 3)).tolist() == [[False, True, True], [False, True, True]]


@pytest.mark.parametrize(
    ("rle", "message"),
    [
        ([300], "bytes, 0 to 255"),
        (["a"], "bytes, 0 to 255"),
        ([], "ends too early"),
        (encode_brush(MASKS["blobs"])[:-3], "ends too early"),
        (encode_brush(np.zeros((5, 5), bool)), "expected 50 x 37 x 4"),
    ],
    ids=["large", "text", "empty", "cut", "size"],
)
def test_what_is_no_brush_is_refused(rle, message):
    with pytest.raises(ValueError, match=message):
        decode_brush(rle, (50, 37))
