"""An image of any mode looks like its 8-bit original, and the same to inference, training and evaluation."""

import io

import numpy as np
import pytest
from PIL import Image, ImageCms
from pycocotools import mask as coco_mask

from sam_jax.data.record_examples import ExampleMaker
from sam_jax.data.records import Record
from sam_jax.evaluation.sets.image_sets import decode_image
from sam_jax.inference.images import as_array, read_image
from sam_jax.rgb import to_rgb

# Smooth, so that modes that keep fewer colours keep these. Its sides are those of the training example below.
ROWS, COLUMNS = np.mgrid[0:96, 0:128]
RGB = np.stack([40 + ROWS, 60 + COLUMNS, 200 - ROWS // 2 - COLUMNS // 2], axis=2).astype(np.uint8)
GREY = (40 + ROWS + COLUMNS // 2).astype(np.uint8)
COLOUR, SHADE = Image.fromarray(RGB), Image.fromarray(GREY)
AS_RGB = np.repeat(GREY[..., None], 3, axis=2)
LAB = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")


def of_values(mode, dtype, factor=1):
    return Image.frombytes(mode, SHADE.size, (GREY.astype(np.float64) * factor).astype(dtype).tobytes())


def with_alpha(image):
    image = image.copy()
    image.putalpha(Image.fromarray(np.where(COLUMNS < 64, 255, 128).astype(np.uint8)))
    return image


INDEX = np.random.default_rng(0).integers(0, 16, (96, 128), np.uint8)
COLOURS = np.random.default_rng(1).integers(0, 256, (16, 3), np.uint8)


def of_palette(mode):
    image = Image.frombytes("P", SHADE.size, INDEX.tobytes())
    image.putpalette(COLOURS.tobytes())
    image.info["transparency"] = bytes(range(16))
    return image.convert(mode)


# The mode: an image of it, its 8-bit original, and by how many levels the mode itself may change a colour.
MODES = {
    "1": (Image.fromarray(GREY > 100), np.where(AS_RGB > 100, 255, 0), 0),
    "L": (SHADE, AS_RGB, 0),
    "LA": (with_alpha(SHADE), AS_RGB, 0),
    "La": (with_alpha(SHADE).convert("La"), AS_RGB, 2),
    "P": (of_palette("P"), COLOURS[INDEX], 0),
    "PA": (of_palette("PA"), COLOURS[INDEX], 0),
    "RGB": (COLOUR, RGB, 0),
    "RGBA": (with_alpha(COLOUR), RGB, 0),
    "RGBa": (with_alpha(COLOUR).convert("RGBa"), RGB, 2),
    "RGBX": (COLOUR.convert("RGBX"), RGB, 0),
    "CMYK": (COLOUR.convert("CMYK"), RGB, 0),
    "YCbCr": (COLOUR.convert("YCbCr"), RGB, 3),
    "LAB": (ImageCms.applyTransform(COLOUR, LAB), RGB, 18),
    "HSV": (COLOUR.convert("HSV"), RGB, 5),
    "I": (of_values("I", np.int32), AS_RGB, 0),
    "I;16": (of_values("I;16", "<u2"), AS_RGB, 0),
    "I;16B": (of_values("I;16B", ">u2"), AS_RGB, 0),
    "I;16L": (of_values("I;16L", "<u2"), AS_RGB, 0),
    "F": (of_values("F", np.float32), AS_RGB, 0),
    "I of 16 bits": (of_values("I", np.int32, 257), AS_RGB, 0),
    "I;16 of 16 bits": (of_values("I;16", "<u2", 257), AS_RGB, 0),
    "I;16B of 16 bits": (of_values("I;16B", ">u2", 257), AS_RGB, 0),
    "I;16L of 16 bits": (of_values("I;16L", "<u2", 257), AS_RGB, 0),
    "F of shares": (of_values("F", np.float32, 1 / 255), AS_RGB, 0),
    "F of 16 bits": (of_values("F", np.float32, 257), AS_RGB, 0),
}


@pytest.mark.parametrize("mode", MODES)
def test_an_image_of_any_mode_looks_like_its_8_bit_original(mode):
    image, expected, tolerance = MODES[mode]
    assert image.mode == mode.partition(" ")[0]
    before = image.tobytes()
    found = to_rgb(image)
    assert found.mode == "RGB"
    assert np.abs(np.asarray(found).astype(int) - expected).max() <= tolerance
    assert image.tobytes() == before
    np.testing.assert_array_equal(as_array(image), np.asarray(found))


@pytest.mark.parametrize(("mode", "dtype"), [("I", np.int32), ("F", np.float32)])
def test_white_of_values_beyond_16_bits_is_the_largest(mode, dtype):
    values = np.array([[-5, 0, 50_000, 100_000]], dtype)
    found = np.asarray(to_rgb(Image.frombytes(mode, (4, 1), values.tobytes())))
    assert found[0, :, 0].tolist() == [0, 0, 128, 255]


def test_values_that_are_no_numbers():
    values = np.array([[np.nan, np.inf, -np.inf, 0.5, 1.0]], np.float32)
    found = np.asarray(to_rgb(Image.fromarray(values)))
    assert found[0, :, 0].tolist() == [0, 255, 0, 128, 255]
    assert not np.asarray(to_rgb(Image.new("F", (2, 1)))).any()


SAVED = {
    "JPEG": ("L", "RGB", "CMYK"),
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I;16 of 16 bits"),
    "TIFF": sorted(set(MODES) - {"La", "PA", "RGBa", "HSV", "YCbCr", "I;16L", "I;16L of 16 bits"}),
}


@pytest.mark.parametrize(("kind", "mode"), [(kind, mode) for kind, modes in SAVED.items() for mode in modes])
def test_files_look_the_same_to_inference_training_and_evaluation(tmp_path, kind, mode):
    image, expected, tolerance = MODES[mode]
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"quality": 100, "subsampling": 0} if kind == "JPEG" else {}))
    path = tmp_path / "image"
    path.write_bytes(buffer.getvalue())
    found = read_image(path)
    assert np.abs(found.astype(int) - expected).max() <= tolerance + 4 * (kind == "JPEG")
    np.testing.assert_array_equal(decode_image(buffer.getvalue(), "image"), found)
    everything = coco_mask.encode(np.asfortranarray(np.ones((96, 128), np.uint8)))
    example = ExampleMaker(128, 1)(0, Record("image", 0, buffer.getvalue(), (everything,)))
    np.testing.assert_array_equal(example.image[:96], found)
