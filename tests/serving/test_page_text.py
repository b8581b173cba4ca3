"""What users name is found, shown and selected on the page of a server with a text model."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from tests.serving import browsing
from tests.tiny_towers import save_colour_towers

pytestmark = pytest.mark.browser

SIZE = (240, 360)  # H, W
DISCS = {(220, 30, 30): (90, 110), (30, 190, 50): (260, 120)}  # colour: x, y of the middle
RADIUS = 50


@pytest.fixture(scope="module")
def scene():
    image = Image.new("RGB", SIZE[::-1], (120, 120, 120))
    for colour, (x, y) in DISCS.items():
        ImageDraw.Draw(image).ellipse((x - RADIUS, y - RADIUS, x + RADIUS, y + RADIUS), fill=colour)
    return np.asarray(image)


def test_what_is_named_is_found(browser, scene, tmp_path, pytestconfig):
    browsing.check_page_is_built()
    save_colour_towers(tmp_path / "towers")
    cache = pytestconfig.cache.mkdir("onnx")
    with browsing.serving(cache, "--text-model", str(tmp_path / "towers")) as url:
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        visitor = browsing.Visitor(page, url)
        visitor.open(browsing.as_file(scene))
        visitor.actual_size(*SIZE)
        page.select_option("#density", "8")
        page.keyboard.press("t")
        page.keyboard.type("a red thing, green")
        page.keyboard.press("Enter")
        page.wait_for_selector("#everything-said:not([hidden])", timeout=5 * browsing.WAIT)
        said = page.inner_text("#everything-said")
        counts = [int(part.split()[0]) for part in said.split(". ")[0].replace("a red thing: ", "").split(", green: ")]
        assert len(counts) == 2
        assert min(counts) >= 1, said
        x, y = DISCS[220, 30, 30]
        page.mouse.click(*visitor.at(x, y))
        visitor.wait_for_mask()
        visitor.keep()
        rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
        disc = (columns + 0.5 - x) ** 2 + (rows + 0.5 - y) ** 2 < RADIUS**2
        assert browsing.iou(visitor.kept_mask(), disc) > 0.7
        # Again, of one: what was found before is no longer there.
        page.fill("#phrases", "a red thing")
        page.click("#find-text")
        page.wait_for_function("() => !document.querySelector('#everything-said').textContent.includes('green')")
        assert page.inner_text("#everything-said").startswith(f"a red thing: {counts[0]} mask")
        assert visitor.errors == []
        page.close()
    with browsing.serving(cache) as url:
        page = browser.new_page()
        browsing.Visitor(page, url)
        assert page.is_hidden("#text")
        page.close()
