"""Images as people have them come out upright and RGB; everything else is one line that says what to do."""

import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from sam_jax.inference.images import ImageError, read_image, read_mask_input

# Not square, every pixel its own colour.
RGB = np.random.default_rng(0).integers(0, 256, (5, 8, 3), np.uint8)


def saved(path, pixels, **options):
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(path, **options)
    return path


def assert_reads(path, expected):
    out = read_image(path)
    assert out.dtype == np.uint8
    assert out.ndim == 3
    np.testing.assert_array_equal(out, expected)


def as_rgb(grey):
    return np.repeat(np.asarray(grey, np.uint8)[..., None], 3, axis=2)


def test_rgb(tmp_path):
    assert_reads(saved(tmp_path / "a.png", RGB), RGB)
    assert_reads(str(saved(tmp_path / "a.webp", RGB, lossless=True)), RGB)


def test_grey_and_black_and_white(tmp_path):
    grey = RGB[..., 0]
    assert_reads(saved(tmp_path / "grey.png", grey), as_rgb(grey))
    assert_reads(saved(tmp_path / "bits.png", Image.fromarray(grey > 100)), as_rgb((grey > 100) * 255))


def test_alpha_is_dropped_and_the_colours_below_it_kept(tmp_path):
    alpha = np.zeros((5, 8, 1), np.uint8)
    alpha[:, 4:] = 128
    assert_reads(saved(tmp_path / "rgba.png", np.concatenate([RGB, alpha], axis=2)), RGB)
    assert_reads(saved(tmp_path / "la.png", np.concatenate([RGB[..., :1], alpha], axis=2)), as_rgb(RGB[..., 0]))


@pytest.mark.parametrize("options", [{}, {"transparency": 3}])
def test_palette(tmp_path, options):
    colours = np.random.default_rng(1).integers(0, 256, (16, 3), np.uint8)
    index = np.random.default_rng(2).integers(0, 16, (5, 8), np.uint8)
    image = Image.fromarray(index)
    image = Image.frombytes("P", image.size, image.tobytes())
    image.putpalette(colours.tobytes())
    assert_reads(saved(tmp_path / "p.png", image, **options), colours[index])


def test_cmyk(tmp_path):
    cmyk = np.concatenate([255 - RGB, np.zeros((5, 8, 1), np.uint8)], axis=2)
    assert_reads(saved(tmp_path / "cmyk.tif", Image.frombytes("CMYK", (8, 5), cmyk.tobytes())), RGB)
    plain = np.full((16, 24, 4), (0, 255, 255, 0), np.uint8)  # magenta and yellow are red
    jpeg = saved(tmp_path / "cmyk.jpg", Image.frombytes("CMYK", (24, 16), plain.tobytes()), quality=95)
    assert abs(read_image(jpeg).astype(int) - (255, 0, 0)).max() < 8


def test_sixteen_bits_are_scaled_not_cut(tmp_path):
    values = np.array([[0, 128, 129, 257], [32896, 65407, 65406, 65535]], np.uint16)
    expected = [[0, 0, 1, 1], [128, 255, 254, 255]]  # to the nearest of v / 257
    assert_reads(saved(tmp_path / "deep.png", values), as_rgb(expected))
    assert_reads(saved(tmp_path / "deep.tif", values), as_rgb(expected))


# What a reader must do with the stored pixels, by EXIF orientation.
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert_reads(saved(tmp_path / "turned.png", RGB, exif=exif), UPRIGHT[orientation](RGB))


def test_exif_rotated_jpeg(tmp_path):
    """A telephone held upright: the sensor's left side is the image's top."""
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = np.zeros((32, 64, 3), np.uint8)
    stored[:, :32] = (200, 30, 30)
    out = read_image(saved(tmp_path / "phone.jpg", stored, exif=exif, quality=95, subsampling=0))
    assert out.shape == (64, 32, 3)
    assert abs(out[:24].astype(int) - (200, 30, 30)).max() < 12
    assert out[40:].max() < 12


@pytest.mark.parametrize("size", [(90, 1), (1, 90), (1, 1)])
def test_thin_images(tmp_path, size):
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    assert_reads(saved(tmp_path / "thin.png", pixels), pixels)


def png(width, height):
    """A PNG whose header claims a size and whose data are a few bytes."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")


def jpeg():
    buffer, pixels = io.BytesIO(), np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def assert_refused(path, message, **options):
    limit = Image.MAX_IMAGE_PIXELS
    with pytest.raises(ImageError, match=message) as failure:
        read_image(path, **options)
    assert str(path) in str(failure.value)
    assert "\n" not in str(failure.value)
    assert limit == Image.MAX_IMAGE_PIXELS  # the caller's own limit is left alone


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (jpeg()[:1500], "is broken .*truncated.*fetch or export it again"),
        (jpeg()[:20], r"fetch or export it again|convert it to JPEG or PNG"),
        (b"This is a letter.\n", "is not an image that PIL can read; convert it to JPEG or PNG"),
        (b"", "is not an image that PIL can read"),
        (png(64, 64), "is broken"),
        (png(64, 64)[:40], "PIL can read|is broken"),
        (png(20_000, 20_000), "has 20000x20000 = 400,000,000 pixels, more than the limit of .*shrink it, or raise max"),
        (png(0, 7), "PIL can read|is broken"),
    ],
)
def test_broken_files(tmp_path, content, message):
    path = tmp_path / "image.jpg"
    path.write_bytes(content)
    assert_refused(path, message)


def test_paths_that_are_no_image(tmp_path):
    assert_refused(tmp_path / "nowhere.jpg", "does not exist; expected an image")
    assert_refused(tmp_path, "is a directory; expected an image")


def test_max_pixels(tmp_path):
    path = saved(tmp_path / "a.png", RGB)
    assert read_image(path, max_pixels=40).shape == RGB.shape
    assert_refused(path, "has 8x5 = 40 pixels, more than the limit of 39; shrink it, or raise", max_pixels=39)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # it tells of every odd tag
def test_damaged_bytes_are_never_another_error(tmp_path):
    """Files with random bytes overwritten: an image or an ImageError, nothing else."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    buffers = []
    for kind, options in (("JPEG", {"exif": exif}), ("PNG", {"exif": exif}), ("TIFF", {}), ("GIF", {}), ("WEBP", {})):
        buffers.append(io.BytesIO())
        Image.fromarray(RGB).save(buffers[-1], kind, **options)
    rng, path = np.random.default_rng(0), tmp_path / "image"
    for content in (buffer.getvalue() for buffer in buffers):
        for _ in range(40):
            damaged = np.frombuffer(content, np.uint8).copy()
            damaged[rng.integers(4, len(damaged), 3)] = rng.integers(0, 256, 3)
            path.write_bytes(damaged.tobytes())
            with contextlib.suppress(ImageError):
                assert read_image(path, max_pixels=10**6).dtype == np.uint8


def test_mask_input(tmp_path):
    logits = np.random.default_rng(0).normal(size=(1, 20, 20)).astype(np.float32)
    np.save(tmp_path / "logits.npy", logits)
    out = read_mask_input(tmp_path / "logits.npy")
    assert out.dtype == np.float32
    np.testing.assert_array_equal(out, logits)


def _npz():
    buffer = io.BytesIO()
    np.savez(buffer, logits=np.zeros((1, 20, 20), np.float32))
    return buffer.getvalue()


def _npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


ZEROS = _npy(np.zeros((1, 20, 20), np.float32))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"text\n",
        ZEROS[:300],
        ZEROS[:50],
        _npy(np.array([{"a": 1}])),  # a pickle, which may run code
        _npz(),
        _npz()[:40],
        ZEROS.replace(b"(1, 20, 20), }" + b" " * 10, b"(1, 1000000, 1000000), }"),
    ],
    ids=["empty", "text", "truncated", "header", "pickle", "archive", "broken archive", "claims terabytes"],
)
def test_foreign_mask_files(tmp_path, content):
    path = tmp_path / "logits.npy"
    path.write_bytes(content)
    message = r"is not a \.npy array .*save low_res_masks\[i:i\+1\] with numpy.save"
    with pytest.raises(ImageError, match=message) as failure:
        read_mask_input(path)
    assert str(path) in str(failure.value)
    assert "\n" not in str(failure.value)


def test_mask_paths_that_are_no_file(tmp_path):
    with pytest.raises(ImageError, match=r"does not exist; expected a \.npy file of mask logits"):
        read_mask_input(tmp_path / "nowhere.npy")
    with pytest.raises(ImageError, match=r"is not a \.npy array"):
        read_mask_input(tmp_path)
