"""The page, as users have it: a browser of theirs, a server's process, masks compared with SamPredictor's."""

import io
import json
import time

import httpx
import numpy as np
import pytest
from PIL import Image

from sam_jax.checkpoint import load_model
from sam_jax.inference.images import decode_image
from sam_jax.inference.predictor import SamPredictor
from sam_jax.ops.rle import decode_mask
from tests.serving import browsing

pytestmark = pytest.mark.browser

DOG = (browsing.ROOT / "docs/images/dog.jpg").read_bytes()
WIDE = {"width": 1280, "height": 800}


@pytest.fixture(scope="module")
def url(pytestconfig):
    browsing.check_page_is_built()
    with browsing.serving(pytestconfig.cache.mkdir("onnx")) as url:
        yield url


@pytest.fixture
def visitor(browser, url):
    page = browser.new_page(viewport=WIDE)
    visitor = browsing.Visitor(page, url)
    yield visitor
    page.close()
    assert visitor.errors == []


@pytest.fixture(scope="module")
def predictor():
    return SamPredictor(*load_model())


def pixels(content):
    return decode_image(content, "the image")


def expected(predictor, content, best=True, **prompts):
    """The mask that SamPredictor finds: the best of three, or the only one."""
    predictor.set_image(pixels(content))
    found = predictor.predict(**prompts, multimask_output=best)
    return found.masks[found.iou_predictions.argmax()]


def at(*points, labels=None):
    return {"point_coords": np.array(points, float), "point_labels": np.array(labels or [1] * len(points))}


def cropped(size):
    """Something to see, (h, w, 3): dogs side by side, cut."""
    dog = pixels(DOG)
    height, width = size
    tiled = np.tile(dog, (-(-height // dog.shape[0]), -(-width // dog.shape[1]), 1))
    return np.ascontiguousarray(tiled[:height, :width])


def test_a_click_gives_the_masks_of_the_predictor(visitor, predictor):
    visitor.open(DOG, "dog.jpg")
    visitor.actual_size(341, 512)
    visitor.click(275, 149)
    assert visitor.page.locator("#candidates button").count() == 3
    visitor.keep()
    assert browsing.iou(visitor.kept_mask(), expected(predictor, DOG, **at((275, 149)))) > 0.999
    predictor.set_image(pixels(DOG))
    all_three = predictor.predict(**at((275, 149))).masks
    for number, mask in enumerate(all_three, 1):
        visitor.click(275, 149)
        visitor.page.keyboard.press(str(number))
        if mask.any() and number - 1 != predictor.predict(**at((275, 149))).iou_predictions.argmax():
            visitor.keep()
            assert browsing.iou(visitor.kept_mask(), mask) > 0.999
        visitor.page.keyboard.press("Escape")


@pytest.mark.parametrize("wish", ["", "?decoder=webgpu"])
def test_a_gpu_decodes_where_there_is_one(browser, url, predictor, wish):
    """Here the processor plays it, which is slower: the page takes it only if it is asked to."""
    visitor = browsing.Visitor(browser.new_page(viewport=WIDE), url + wish)
    assert visitor.page.evaluate("navigator.gpu.requestAdapter().then((gpu) => gpu.info.isFallbackAdapter)")
    visitor.open(DOG, "dog.jpg")
    if wish:
        visitor.page.wait_for_selector("html[data-decoder*='WebGPU']", state="attached")
    visitor.actual_size(341, 512)
    visitor.click(275, 149)
    assert ("WebGPU" in visitor.page.inner_text("#latency")) == bool(wish)
    visitor.keep()
    assert browsing.iou(visitor.kept_mask(), expected(predictor, DOG, **at((275, 149)))) > 0.999
    visitor.page.close()
    assert visitor.errors == []


def test_clicks_add_and_take_away_and_are_undone(visitor, predictor):
    visitor.open(DOG, "dog.jpg")
    visitor.actual_size(341, 512)
    masks = []
    for x, y, options in ((275, 149, {}), (300, 260, {}), (60, 40, {"modifiers": ["Shift"]})):
        for key in options.get("modifiers", []):
            visitor.page.keyboard.down(key)
        visitor.page.mouse.click(*visitor.at(x, y))
        for key in options.get("modifiers", []):
            visitor.page.keyboard.up(key)
        visitor.page.wait_for_selector(f"#candidates button:last-child:nth-child({4 if masks else 3})")
        visitor.wait_for_mask()
        masks.append(visitor.seen(341, 512))
    visitor.page.keyboard.press("Control+z")
    np.testing.assert_array_equal(visitor.seen(341, 512), masks[1])
    visitor.page.keyboard.press("Control+z")
    np.testing.assert_array_equal(visitor.seen(341, 512), masks[0])
    visitor.page.click("#redo")
    visitor.page.click("#redo")
    np.testing.assert_array_equal(visitor.seen(341, 512), masks[2])
    visitor.keep()
    prompts = at((275, 149), (300, 260), (60, 40), labels=[1, 1, 0])
    assert browsing.iou(visitor.kept_mask(), expected(predictor, DOG, best=False, **prompts)) > 0.999


def test_a_box_is_drawn(visitor, predictor):
    visitor.open(DOG, "dog.jpg")
    visitor.actual_size(341, 512)
    visitor.drag(410, 330, 140, 60)
    visitor.keep()
    mask = expected(predictor, DOG, best=False, box=np.array([140.0, 60, 410, 330]))
    assert browsing.iou(visitor.kept_mask(), mask) > 0.999


def test_a_cut_out_is_the_image_inside_the_mask_and_nothing_outside(visitor):
    image = cropped((201, 333))
    visitor.open(browsing.as_file(image), "my.dog.png")
    visitor.actual_size(201, 333)
    visitor.click(275, 149)
    visitor.keep()
    content, name = visitor.download("#tray button >> text=Download")
    assert name == "my.dog_cutout_1.png"
    mask, found = visitor.kept_mask(), np.asarray(Image.open(io.BytesIO(content)))
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    np.testing.assert_array_equal(found[..., 3], 255 * mask[box])
    np.testing.assert_array_equal(found[mask[box]][:, :3], image[box][mask[box]])
    sa1b = json.loads(visitor.download("#save-sa1b")[0])
    assert sa1b["image"] == {"image_id": 1, "width": 333, "height": 201, "file_name": "my.dog.png"}
    np.testing.assert_array_equal(decode_mask(sa1b["annotations"][0]["segmentation"]), mask)


def test_a_cut_out_is_copied_and_pasted(visitor):
    """Through the browser's own clipboard; what is pasted is an image like any other."""
    visitor.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    visitor.open(DOG, "dog.jpg")
    visitor.actual_size(341, 512)
    visitor.click(275, 149)
    visitor.keep()
    cut_out = np.asarray(Image.open(io.BytesIO(visitor.download("#tray button >> text=Download")[0])))
    visitor.page.click("#tray button >> text=Copy")
    visitor.page.wait_for_selector("text=dog_cutout_1.png copied")
    content = visitor.page.evaluate(
        """async () => {
            const [item] = await navigator.clipboard.read();
            return [...new Uint8Array(await (await item.getType("image/png")).arrayBuffer())];
        }"""
    )
    copied = np.asarray(Image.open(io.BytesIO(bytes(content))).convert("RGBA"))
    np.testing.assert_array_equal(copied[..., 3], cut_out[..., 3])
    inside = cut_out[..., 3] > 0
    np.testing.assert_array_equal(copied[inside], cut_out[inside])
    visitor.page.keyboard.press("Control+v")
    height, width = cut_out.shape[:2]
    visitor.page.wait_for_selector("text=the image is ready")
    visitor.actual_size(height, width)
    visitor.click(width // 2, height // 2)
    visitor.keep()
    assert visitor.kept_mask().shape == (height, width)


def test_two_fingers_zoom(visitor, predictor):
    """Twice as far apart, an image is twice as large, and what was between them stays there."""
    visitor.open(DOG, "dog.jpg")
    visitor.actual_size(341, 512)
    box = visitor.page.locator("#stage").bounding_box()
    middle = np.array([box["x"] + box["width"] / 2, box["y"] + box["height"] / 2])
    fingers = visitor.page.context.new_cdp_session(visitor.page)
    for kind, reach in (("touchStart", 50), ("touchMove", 75), ("touchMove", 100), ("touchEnd", None)):
        ends = [] if reach is None else [-reach, reach]
        points = [{"x": middle[0] + end, "y": middle[1], "id": number} for number, end in enumerate(ends)]
        fingers.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    visitor.page.mouse.click(*(middle + 2 * (np.array(visitor.at(275, 149)) - middle)))
    visitor.wait_for_mask()
    visitor.keep()
    assert browsing.iou(visitor.kept_mask(), expected(predictor, DOG, **at((275, 149)))) > 0.999


def turned(image):
    """A file that is stored on its side, and says so."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return browsing.as_file(np.rot90(image), exif=exif)


KINDS = {
    "odd": ((203, 301), browsing.as_file),
    "tall": ((640, 61), browsing.as_file),
    "wide": ((37, 800), browsing.as_file),
    "turned": ((300, 207), turned),
    "tiny": ((5, 7), browsing.as_file),
    "large": ((530, 880), browsing.as_file),
}


@pytest.mark.parametrize("kind", KINDS)
def test_masks_line_up_to_the_pixel(visitor, predictor, kind):
    """On the screen, image and mask are where they are in the files."""
    size, write = KINDS[kind]
    image = cropped(size)
    content = write(image)
    visitor.open(content)
    visitor.actual_size(*size)
    before = visitor.seen(*size)
    np.testing.assert_array_equal(before, image)
    x, y = size[1] * 0.6, size[0] * 0.4
    visitor.click(x, y)
    tinted = (visitor.seen(*size) != before).any(-1)
    visitor.keep()
    mask = visitor.kept_mask()
    assert mask.any()
    rows, columns = np.indices(size)
    away = np.hypot(columns + 0.5 - x, rows + 0.5 - y) > 11  # from the point's mark
    np.testing.assert_array_equal(tinted[away], mask[away])
    assert browsing.iou(mask, expected(predictor, content, **at((x, y)))) > 0.999


def test_everything_is_found_shown_and_selected(visitor):
    visitor.open(DOG, "dog.jpg")
    visitor.actual_size(341, 512)
    before = visitor.seen(341, 512)
    visitor.page.select_option("#density", "8")
    visitor.page.click("#everything")
    visitor.page.wait_for_selector("#progress:not([hidden])")
    visitor.page.wait_for_selector("#everything-said:not([hidden])", timeout=5 * browsing.WAIT)  # it is compiled first
    shown = (visitor.seen(341, 512) != before).any(-1)
    assert shown.mean() > 0.2
    rows, columns = np.nonzero(shown)
    visitor.page.mouse.move(*visitor.at(columns[len(columns) // 2] + 0.5, rows[len(rows) // 2] + 0.5))
    visitor.page.mouse.down()
    visitor.page.mouse.up()
    visitor.wait_for_mask()
    visitor.keep()
    kept = visitor.coco()["annotations"][0]
    assert decode_mask(kept["segmentation"])[rows[len(rows) // 2], columns[len(columns) // 2]]
    assert kept["stability_score"] > 0
    visitor.page.keyboard.press("e")
    np.testing.assert_array_equal(visitor.seen(341, 512), before)


def test_everything_is_cancelled(visitor):
    visitor.open(DOG, "dog.jpg")
    visitor.page.select_option("#density", "32")
    visitor.page.keyboard.press("e")
    visitor.page.click("#cancel")
    visitor.page.wait_for_selector("#progress", state="hidden")
    assert visitor.page.is_hidden("#everything-said")
    assert visitor.page.is_enabled("#everything")
    assert visitor.page.is_hidden("#error")


def test_keys_alone_are_enough(visitor, predictor):
    visitor.open(DOG, "dog.jpg")
    keyboard = visitor.page.keyboard
    keyboard.press("a")
    keyboard.press("Shift+ArrowRight")  # 12 pixels of the screen, from the middle
    keyboard.press("Control+Shift+ArrowDown")  # a pixel of the image
    keyboard.press("Enter")
    visitor.page.wait_for_selector("#keep:not([disabled])")
    visitor.keep()
    assert browsing.iou(visitor.kept_mask(), expected(predictor, DOG, **at((256 + 12, 170.5 + 1)))) > 0.999


def test_the_wheel_goes_through_the_masks_by_size(visitor):
    visitor.open(DOG, "dog.jpg")
    visitor.actual_size(341, 512)
    visitor.click(275, 149)
    areas = []
    for direction in (1, 1, 1, -1, -1, -1):
        visitor.page.mouse.move(*visitor.at(275, 149))
        visitor.page.mouse.wheel(0, 100 * direction)
        visitor.frames()
        label = visitor.page.get_attribute("#candidates [aria-pressed=true]", "aria-label")
        areas.append(int(label.split(": ")[1].split(" ")[0]))
    assert areas[2] <= areas[3] <= areas[4] <= areas[5]
    assert areas[2] < areas[5]


def test_what_is_no_image_is_said_in_one_line(visitor):
    visitor.page.set_input_files("#file", {"name": "a.txt", "mimeType": "image/png", "buffer": b"not an image"})
    visitor.page.wait_for_selector("#error:not([hidden])")
    assert "a.txt is not an image" in visitor.page.inner_text("#error")
    assert visitor.page.is_visible("#drop")


@pytest.mark.parametrize("sample", ["dog.jpg", "bags.jpg", "pizza.jpg"])
def test_samples_fit_a_telephone_and_fingers(browser, url, sample):
    context = browser.new_context(viewport={"width": 360, "height": 700}, has_touch=True, is_mobile=True)
    visitor = browsing.Visitor(context.new_page(), url)
    visitor.page.tap(f"[data-sample='{sample}']")
    visitor.wait_for_image()
    box = visitor.page.locator("#stage").bounding_box()
    visitor.page.touchscreen.tap(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    visitor.page.wait_for_selector("#keep:not([disabled])")
    assert visitor.page.evaluate("document.documentElement.scrollWidth") <= 360
    context.close()
    assert visitor.errors == []


def native_milliseconds(url):
    """What the decoder takes in onnxruntime outside of browsers, with two threads: median."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    session = onnxruntime.InferenceSession(httpx.get(f"{url}/v1/model/decoder.onnx", trust_env=False).content, options)
    numbers = np.random.default_rng(0)
    given = {
        one.name: numbers.random([2 if isinstance(n, str) else n for n in one.shape]) for one in session.get_inputs()
    }
    given = {name: value.astype(np.float32) for name, value in given.items()}
    times = []
    for _ in range(25):
        start = time.perf_counter()
        session.run(["low_res_masks", "iou_predictions"], given)
        times.append(1000 * (time.perf_counter() - start))
    return browsing.median(times)


@pytest.mark.slow  # measures time: on a machine that others do not use
def test_it_is_quick(visitor, url, capsys):
    """The first image within 3 s; a preview within 50 ms, or so many times what the same decoder takes natively."""
    image = cropped((1000, 1500))
    first = visitor.open(browsing.as_file(image, "JPEG", quality=90), "large.jpg")
    box = visitor.page.locator("#stage").bounding_box()
    previews = []
    for step in range(25):
        visitor.page.mouse.move(box["x"] + box["width"] / 2 + 5 * step, box["y"] + box["height"] / 2 + 3 * step)
        visitor.page.wait_for_timeout(150)
        if text := visitor.page.get_attribute("#latency", "data-milliseconds"):
            previews.append(float(text))
    native, preview = native_milliseconds(url), browsing.median(previews)
    with capsys.disabled():
        print(f"\nimage ready in {first:.2f} s; a preview takes {preview:.0f} ms (median), natively {native:.0f} ms")
    assert first < 3
    assert preview < max(50, 6 * native)


def test_the_page_is_small():
    """Without the GPU's worker, which is the other worker's code beside onnxruntime's for GPUs."""
    own = [path for path in browsing.STATIC.glob("*") if path.is_file() and path.name != "worker_webgpu.js"]
    assert {"index.html", "page.js", "page.css", "worker_wasm.js"} <= {path.name for path in own}
    assert sum(path.stat().st_size for path in own) < 200_000


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_everybody_can_use_it(browser, url, theme):
    """What axe-core finds against WCAG 2.2 AA, before an image, with one, and in the help."""
    context = browser.new_context(viewport=WIDE, color_scheme=theme, bypass_csp=True)  # for axe alone
    visitor = browsing.Visitor(context.new_page(), url)
    visitor.page.add_script_tag(path=browsing.ROOT / "web/node_modules/axe-core/axe.min.js")
    assert visitor.violations() == []
    visitor.open(DOG, "dog.jpg")
    visitor.actual_size(341, 512)
    visitor.click(275, 149)
    visitor.keep()
    visitor.click(275, 149)
    assert visitor.violations() == []
    visitor.page.keyboard.press("?")
    assert visitor.violations() == []
    context.close()
