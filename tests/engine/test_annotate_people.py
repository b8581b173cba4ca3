"""The page for annotators, as people have it: what a model proposed, time, other themes, other windows, no mouse."""

import numpy as np
import pytest

from tests.engine.annotating import LINE, SAVED, WIDE, Annotator, pixels, stroke
from tests.engine.stores import draft, rectangle
from tests.predicting import H, W
from tests.serving import browsing

pytestmark = pytest.mark.browser

BOXES = [(5, 5, 20, 30), (30, 10, 50, 40), (8, 50, 40, 90), (45, 60, 58, 94)]


@pytest.fixture
def proposals(two_images):
    """Masks that a model proposes for the first image."""
    found = [rectangle(*box, size=(H, W)) for box in BOXES]
    assert two_images.fill_image(1, [draft(mask, predicted_iou=0.8) for mask in found], "semi-automatic", 1)
    return found


@pytest.fixture
def open_page(browser, two_images, served):
    """Opens the page with a memory of its own; at the end nothing has gone wrong in it."""
    annotators = []

    def open_page(**options):
        page = browser.new_context(**{"viewport": WIDE} | options).new_page()
        annotators.append(Annotator(page, served.url))
        annotators[-1].wait_for("image_0.png")
        return annotators[-1]

    yield open_page
    for annotator in annotators:
        annotator.page.context.close()
        assert annotator.errors == []


def test_proposals_are_accepted_corrected_and_deleted(two_images, proposals, open_page):
    ada = open_page()
    assert ada.page.locator("#label-list .proposed").count() == 4
    assert "proposed" in ada.page.inner_text("#label-list li:nth-child(1)")
    ada.press("m", "a")  # the first, as it is
    ada.page.wait_for_selector("#label-list li:nth-child(1):not(.proposed)")
    ada.press("ArrowDown", "Delete", "Enter")  # the second deleted, the one after it corrected
    ada.press("e")
    ada.resize(6)
    ada.draw([(70, 5), (70, 45)])
    ada.accept()
    assert ada.page.inner_text("#accept-all") == "Accept all 1 proposed"
    ada.page.click("#accept-all")
    ada.page.wait_for_selector("#accept-all", state="hidden")
    ada.page.wait_for_selector(SAVED)
    masks = two_images.masks(1)
    expected = [proposals[0], proposals[2] & ~stroke(ada.places([(70, 5), (70, 45)]), 6), proposals[3]]
    np.testing.assert_array_equal([pixels(mask) for mask in masks], expected)
    assert {mask.author for mask in masks} == {"ada"}
    ious = [browsing.iou(a, b) for a, b in zip([proposals[0], *proposals[2:]], expected, strict=True)]
    np.testing.assert_allclose([mask.proposal_iou for mask in masks], ious)
    assert [mask.corrections for mask in masks] == [0, 1, 0]
    ada.press("b")
    ada.draw(LINE)
    ada.accept()
    ada.page.wait_for_selector("#figures:has-text('25 % new')")


def test_a_click_on_a_proposal_adds_or_takes_away(two_images, proposals, open_page):
    ada = open_page()
    ada.page.click(".open >> nth=0")
    ada.click(60, 30)
    ada.page.wait_for_selector("#candidates button:nth-child(3)")
    ada.accept()
    larger = pixels(two_images.masks(1)[0])
    assert not (proposals[0] & ~larger).any()
    ada.page.click(".open >> nth=1")
    ada.click(20, 40, button="right")
    ada.page.wait_for_selector("#candidates button:nth-child(3)")
    if ada.page.is_enabled("#accept"):
        ada.accept()
        smaller = pixels(next(mask for mask in two_images.masks(1) if mask.prominence == 1))
        assert not (smaller & ~proposals[1]).any()
    assert larger.sum() > proposals[0].sum()


def test_what_is_not_decided_is_asked_about_once(two_images, proposals, open_page):
    ada = open_page()
    ada.press("b")
    ada.draw(LINE)
    ada.press("d")
    ada.page.wait_for_selector("#error:not([hidden])")
    assert "a mask that is not accepted and 4 proposed masks" in ada.page.inner_text("#error")
    assert two_images.task(1).state == "claimed"
    ada.press("d")
    ada.wait_for("image_1.png")
    assert two_images.task(1).state == "done"


def test_a_skipped_image_goes_back(two_images, open_page):
    ada = open_page()
    ada.page.click("#skip")
    ada.wait_for("image_1.png")
    assert [two_images.task(number).state for number in (1, 2)] == ["open", "claimed"]
    ada.page.click("#skip")
    ada.page.wait_for_selector("#start-title:has-text('No other images are left')")
    ada.page.click("#begin")
    ada.wait_for("image_0.png")


def test_time_is_counted_while_somebody_works(browser, two_images, served):
    page = browser.new_page(viewport=WIDE)
    page.clock.install()
    ada = Annotator(page, served.url)
    ada.wait_for("image_0.png")
    assert page.is_hidden("#nudge")
    ada.press("b")
    page.clock.run_for(29_000)
    assert page.is_hidden("#nudge")
    page.clock.run_for(2_000)
    assert "A rough one will do" in page.inner_text("#nudge")
    page.clock.run_for(10_000)
    assert page.is_hidden("#nudge")
    assert page.inner_text("#clock") in ("0:40", "0:41", "0:42", "0:43")  # real time passes, too
    page.clock.run_for(100_000)  # away: no more than a minute since the last key
    assert page.inner_text("#clock").startswith("1:0")
    ada.draw(LINE)
    ada.accept()
    (mask,) = two_images.masks(1)
    assert 60 <= mask.seconds < 65
    page.clock.run_for(2000)
    assert page.inner_text("#clock") in ("0:01", "0:02", "0:03")
    page.close()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_everybody_can_use_it(two_images, proposals, open_page, theme):
    """What axe-core finds against WCAG 2.2 AA: with masks, while one is corrected, and in the help."""
    ada = open_page(color_scheme=theme, bypass_csp=True)
    ada.page.add_script_tag(path=browsing.ROOT / "web/node_modules/axe-core/axe.min.js")
    assert browsing.violations(ada.page) == []
    ada.page.click(".open >> nth=1")
    ada.press("e")
    ada.draw(LINE)
    assert browsing.violations(ada.page) == []
    ada.press("?")
    assert browsing.violations(ada.page) == []


def test_it_fits_a_telephone_and_fingers(two_images, open_page):
    ada = open_page(viewport={"width": 360, "height": 700}, has_touch=True, is_mobile=True)
    assert ada.page.evaluate("document.documentElement.scrollWidth") <= 360
    ada.page.tap("#tool-brush")
    ada.page.touchscreen.tap(*ada.at(40, 30))
    ada.page.tap("#accept")
    ada.page.wait_for_selector("#label-list li")
    ada.page.wait_for_selector(SAVED)
    (mask,) = two_images.masks(1)
    np.testing.assert_array_equal(pixels(mask), stroke(ada.places([(40, 30)]), 12))


def test_the_page_says_where_annotators_go(browser, two_images, served):
    page = browser.new_page()
    page.goto(served.url)
    page.click("#annotate:not([hidden])")
    page.wait_for_selector("#name-dialog[open]")
    page.keyboard.press("Escape")
    page.wait_for_selector("#begin:not([hidden])")
    page.close()
