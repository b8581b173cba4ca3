"""The page for annotators in a real browser: what it saves is compared to the pixel, with numpy's word on each tool."""

import numpy as np
import pytest
from PIL import Image

from sam_jax.inference.predictor import SamPredictor
from sam_jax.models.sam import Sam
from sam_jax.ops.rle import decode_mask
from tests.engine.annotating import SAVED, Annotator, polygon, stroke
from tests.engine.conftest import engine_running
from tests.engine.stores import make_store, write_images
from tests.predicting import H, W
from tests.serving import browsing
from tests.tiny import TINY

pytestmark = pytest.mark.browser

WIDE = {"width": 1280, "height": 800}
LINE = [(20.3, 10.2), (31.7, 18.4), (44, 15), (44, 40)]
TRIANGLE = [(60, 8), (90.5, 20.25), (66, 48)]


@pytest.fixture
def store(tmp_path):
    with make_store(tmp_path, 0) as made:
        for path in write_images(tmp_path / "more", 2, (H, W)):
            made.add_image(path)
        yield made


@pytest.fixture
def server(store, variables):
    browsing.check_page_is_built()
    with engine_running(store, variables) as server:
        server.service.warm_up()
        yield server


@pytest.fixture
def ada(browser, server):
    page = browser.new_context(viewport=WIDE).new_page()  # with a memory of its own
    annotator = Annotator(page, server.url)
    annotator.wait_for("image_0.png")
    yield annotator
    page.context.close()
    assert annotator.errors == []


def saved(store, image_id=1):
    return store.masks(image_id)


def pixels(mask):
    return decode_mask(mask.segmentation)


def test_two_images_by_clicks_brush_eraser_and_polygon(ada, store, variables):
    ada.find(30, 20)
    ada.press("2")  # not the model's own choice, or it is
    ada.page.fill("#name", "noise")
    ada.accept()
    (first,) = saved(store)
    predictor = SamPredictor(Sam(TINY), variables)
    predictor.set_image(np.asarray(Image.open(store.image_path(store.image(1)))))
    place = ada.places([(30, 20)])
    found = predictor.predict(point_coords=np.array(place), point_labels=np.array([1]))
    assert browsing.iou(pixels(first), found.masks[1]) > 0.99  # noise is nowhere sure: a pixel may turn
    best = found.iou_predictions.argmax()
    assert (first.name, first.author, first.corrections) == ("noise", "ada", int(best != 1))
    assert browsing.iou(decode_mask(first.proposal), found.masks[best]) > 0.99
    assert first.prompts == {"point_coords": place, "point_labels": [1], "box": None}

    ada.press("b")
    ada.resize(3)
    ada.draw(LINE)
    ada.press("e")
    ada.resize(2)
    ada.draw(LINE[1:3])
    ada.press("p")
    for vertex in TRIANGLE:
        ada.click(*vertex)
    ada.press("Enter")
    ada.click(40, 30)
    ada.click(90, 30)
    ada.click(90, 50)
    ada.draw([(40, 30), (38, 25)])  # a vertex is moved
    ada.click(70, 55)
    ada.click(70, 55, button="right")  # and another deleted
    ada.press("Shift+Enter")
    ada.accept()
    second = saved(store)[1]
    expected = stroke(ada.places(LINE), 3) & ~stroke(ada.places(LINE[1:3]), 2)
    expected |= polygon(ada.places(TRIANGLE))
    expected &= ~polygon(ada.places([(38, 25), (90, 30), (90, 50)]))
    np.testing.assert_array_equal(pixels(second), expected)
    assert (second.proposal, second.prompts, second.predicted_iou, second.corrections) == (None, None, None, 4)

    ada.press("m", "Alt+ArrowDown", "Escape", "d")
    ada.wait_for("image_1.png")
    assert [mask.key for mask in saved(store)] == [second.key, first.key]
    (task,) = store.image_tasks(1)
    assert (task.state, task.annotator) == ("done", "ada")
    assert 0 < sum(mask.seconds for mask in saved(store)) <= task.seconds + 0.3
    ada.press("b")
    ada.draw([(5, 5), (5, 5)])
    ada.accept("Enter")
    ada.press("d")
    ada.page.wait_for_selector("#start-title:has-text('All images are done')")
    assert "2 of 2 images · 3 masks" in ada.page.inner_text("#figures")
    np.testing.assert_array_equal(pixels(*saved(store, 2)), stroke(ada.places([(5, 5)]), 2))


def test_undo_and_redo_go_through_all_of_it(ada, store):
    ada.press("b")
    ada.resize(4)
    ada.draw(LINE[:2])
    ada.draw(LINE[2:])
    ada.press("p")
    for vertex in TRIANGLE:
        ada.click(*vertex)
    ada.click(*TRIANGLE[0])  # the first vertex closes it
    ada.press("c")
    ada.find(30, 20)
    for _ in range(5):
        ada.press("Control+z")
    ada.page.wait_for_selector("#accept:not([disabled])")
    ada.press("Control+z", "Control+z", "Control+Shift+z")
    assert ada.page.is_enabled("#redo")
    ada.accept()
    (mask,) = saved(store)
    np.testing.assert_array_equal(pixels(mask), stroke(ada.places(LINE[:2]), 4))
    assert mask.corrections == 1


@pytest.mark.parametrize("zooms", [4, -6])
def test_strokes_are_where_the_mouse_is_at_any_zoom(ada, store, zooms):
    """And the ring around the mouse is as large as what is painted."""
    for _ in range(abs(zooms)):
        ada.page.click("#zoom-in" if zooms > 0 else "#zoom-out")
    middle = [corner + ada.scale * length / 2 for corner, length in zip(ada.corner, (W, H), strict=True)]
    ada.scale *= 1.3**zooms if zooms > 0 else (1 / 1.3) ** -zooms
    ada.corner = [at - ada.scale * length / 2 for at, length in zip(middle, (W, H), strict=True)]
    ada.press("b")
    ada.resize(3)
    line = [(48.2, 28.7), (55, 33.1)]
    ada.page.mouse.move(*ada.at(*line[0]))
    ada.draw(line)
    ada.accept()
    # Views are sums of fractions: a centre at the very edge may be either side.
    sure = stroke(ada.places(line), 3 - 0.02)
    perhaps = stroke(ada.places(line), 3 + 0.02)
    (found,) = map(pixels, saved(store))
    assert not (sure & ~found).any()
    assert not (found & ~perhaps).any()


def test_keys_alone_are_enough(ada, store):
    """Nothing is clicked: cursor, box, brush, polygon, name, order, visibility, deletion, next image."""
    step = 12 / ada.scale
    middle = np.array([W / 2, H / 2])
    ada.press("Shift+ArrowRight", "Space")  # the model, at a place
    ada.page.wait_for_selector("#accept:not([disabled])")
    ada.press("r", *["Control+Shift+ArrowDown"] * 20, *["Control+Shift+ArrowRight"] * 9, "r")
    ada.page.wait_for_selector("#accept:not([disabled])")
    ada.accept("Enter")
    (found,) = saved(store)
    assert found.prompts["point_coords"] == [[middle[0] + step, middle[1]]]
    box = [middle[0] + step, middle[1], middle[0] + step + 9, middle[1] + 20]
    np.testing.assert_allclose(found.prompts["box"], box)
    ada.press("b", "Shift+ArrowLeft", "Space", "Shift+ArrowLeft", "Shift+ArrowUp", "Space")
    ada.press("n")
    ada.page.keyboard.type("drawn with c and b")
    ada.accept("Enter")
    line = middle - [[step, 0], [2 * step, 0], [2 * step, step]]
    np.testing.assert_array_equal(pixels(saved(store)[1]), stroke(line, 12))
    ada.press("p", "Shift+ArrowLeft", "Space", *["Shift+ArrowUp"] * 9, "Space", *["Shift+ArrowLeft"] * 20, "Space")
    ada.press("Space", *["Shift+ArrowDown"] * 9, "Space", "Enter")  # the last vertex is picked up and put down
    ada.accept("Enter")
    vertices = middle - [[step, 0], [step, 9 * step], [21 * step, 0]]
    np.testing.assert_array_equal(pixels(saved(store)[2]), polygon(vertices))
    assert ada.titles() == ["1. Mask", "2. drawn with c and b", "3. Mask"]
    ada.press("m", "End", "Alt+ArrowUp")
    assert ada.titles() == ["1. Mask", "2. Mask", "3. drawn with c and b"]
    assert "number 2 of 3" in ada.page.inner_text("#said")
    ada.press("v")
    assert ada.page.get_attribute("#label-list li:nth-child(2) .eye", "aria-pressed") == "false"
    ada.press("Home", "Delete")
    assert ada.titles() == ["1. Mask", "2. drawn with c and b"]
    ada.page.wait_for_selector(SAVED)
    ada.press("Escape", "d")
    ada.wait_for("image_1.png")
    assert [mask.name for mask in saved(store)] == [None, "drawn with c and b"]


def test_a_reload_in_the_middle_loses_nothing(ada, store):
    ada.find(30, 20)
    ada.accept()
    ada.press("b")
    ada.resize(6)
    ada.draw(LINE)
    ada.press("p")
    ada.click(*TRIANGLE[0])
    ada.click(*TRIANGLE[1])
    ada.page.reload()
    ada.wait_for("image_0.png")
    assert ada.titles() == ["1. Mask"]
    ada.press("p")
    ada.click(*TRIANGLE[2])
    ada.press("Enter")
    ada.accept()
    first, second = saved(store)
    np.testing.assert_array_equal(pixels(second), stroke(ada.places(LINE), 6) | polygon(ada.places(TRIANGLE)))
    ada.page.reload()
    ada.wait_for("image_0.png")
    assert len(ada.titles()) == 2
    ada.page.click(".open >> nth=0")
    ada.press("e")
    ada.resize(12)
    ada.draw(LINE)
    ada.accept()
    np.testing.assert_array_equal(pixels(saved(store)[0]), pixels(first) & ~stroke(ada.places(LINE), 12))


def test_a_deleted_mask_comes_back(ada, store):
    ada.find(30, 20)
    ada.accept()
    before = saved(store)
    ada.page.click(".delete")
    ada.page.wait_for_selector(SAVED)
    assert saved(store) == []
    ada.page.click("#undelete")
    ada.page.wait_for_selector("#label-list li")
    ada.page.wait_for_selector(SAVED)
    (after,) = saved(store)
    assert (after.key, after.segmentation) == (before[0].key, before[0].segmentation)


def test_what_others_change_is_shown_and_decided(ada, store):
    from sam_jax.engine.rows import MaskDraft

    ada.press("b")
    ada.draw(LINE)
    ada.accept()
    for version, choice in ((1, "theirs"), (2, "mine")):
        (mine,) = saved(store)
        theirs = MaskDraft(key=mine.key, segmentation=mine.segmentation, name=f"theirs {version}")
        store.save_mask(1, "ada", theirs, version)
        ada.page.click(".open")
        ada.press("e")
        ada.draw(LINE[:2])
        ada.press("a")
        ada.page.wait_for_selector("#trouble:not([hidden])")
        assert "changed this mask meanwhile" in ada.page.inner_text("#trouble")
        assert ada.page.locator("#trouble canvas").count() == 2
        ada.page.click(f"#trouble-{choice}")
        ada.page.wait_for_selector("#trouble", state="hidden")
        ada.page.wait_for_selector(SAVED)
    (last,) = saved(store)
    assert (last.version, last.name) == (4, "theirs 1")
    np.testing.assert_array_equal(pixels(last), stroke(ada.places(LINE), 12) & ~stroke(ada.places(LINE[:2]), 12))
