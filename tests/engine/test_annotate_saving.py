"""The page for annotators: nothing that was accepted is lost, nobody's work is overwritten unseen."""

import json
import sys

import numpy as np
import pytest

from tests.engine.annotating import LINE, SAVED, TRIANGLE, WIDE, Annotator, pixels, polygon, stroke
from tests.engine.stores import make_store
from tests.engine.test_kill import Server

pytestmark = pytest.mark.browser


def test_a_reload_in_the_middle_loses_nothing(ada, two_images):
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
    first, second = two_images.masks(1)
    np.testing.assert_array_equal(pixels(second), stroke(ada.places(LINE), 6) | polygon(ada.places(TRIANGLE)))
    ada.page.reload()
    ada.wait_for("image_0.png")
    assert len(ada.titles()) == 2
    ada.page.click(".open >> nth=0")
    ada.press("e")
    ada.resize(12)
    ada.draw(LINE)
    ada.accept()
    np.testing.assert_array_equal(pixels(two_images.masks(1)[0]), pixels(first) & ~stroke(ada.places(LINE), 12))


def test_a_deleted_mask_comes_back(ada, two_images):
    ada.find(30, 20)
    ada.accept()
    before = two_images.masks(1)
    ada.page.click(".delete")
    ada.page.wait_for_selector(SAVED)
    assert two_images.masks(1) == []
    ada.page.click("#undelete")
    ada.page.wait_for_selector("#label-list li")
    ada.page.wait_for_selector(SAVED)
    (after,) = two_images.masks(1)
    assert (after.key, after.segmentation) == (before[0].key, before[0].segmentation)


def test_what_others_change_is_shown_and_decided(ada, two_images):
    from sam_jax.engine.rows import MaskDraft

    ada.press("b")
    ada.draw(LINE)
    ada.accept()
    for version, choice in ((1, "theirs"), (2, "mine")):
        (mine,) = two_images.masks(1)
        theirs = MaskDraft(key=mine.key, segmentation=mine.segmentation, name=f"theirs {version}")
        two_images.save_mask(1, "ada", theirs, version)
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
    (last,) = two_images.masks(1)
    assert (last.version, last.name) == (4, "theirs 1")
    np.testing.assert_array_equal(pixels(last), stroke(ada.places(LINE), 12) & ~stroke(ada.places(LINE[:2]), 12))


def test_an_answer_that_is_lost_is_asked_for_again(ada, two_images):
    """The mask is in the two_images, the page does not know it: it sends the same once more, and it is there once."""
    lost = []

    def lose(route):
        if lost:
            return route.continue_()
        lost.append(route.fetch().status)
        return route.abort()

    ada.page.route("**/masks/*", lose)
    ada.press("b")
    ada.draw(LINE)
    ada.press("a")
    ada.page.wait_for_selector("#saving[data-state=waiting]")
    assert "not saved: the server cannot be reached" in ada.page.inner_text("#saving")
    ada.page.wait_for_selector(SAVED)
    (mask,) = two_images.masks(1)
    assert (lost, mask.version) == ([200], 1)


def test_what_the_server_refuses_is_said(ada, two_images):
    def refuse(route):
        route.fulfill(status=422, body=json.dumps({"error": "no such luck"}))

    ada.page.route("**/masks/*", refuse)
    ada.press("b")
    ada.draw(LINE)
    ada.press("a")
    ada.page.wait_for_selector("#trouble:not([hidden])")
    assert "One mask is not saved: no such luck" in ada.page.inner_text("#saving")
    ada.page.unroute("**/masks/*")
    ada.page.click("#trouble-mine")
    ada.page.wait_for_selector(SAVED)
    assert len(two_images.masks(1)) == 1


def test_the_lease_is_renewed(browser, two_images, served, clock):
    page = browser.new_page()
    page.clock.install()
    annotator = Annotator(page, served.url)
    annotator.wait_for("image_0.png")
    before = two_images.task(1).lease_until
    clock.now += 60
    with page.expect_response("**/renew") as answer:
        page.clock.run_for(300_000)
    assert answer.value.status == 200
    assert two_images.task(1).lease_until > before
    page.close()


def test_a_server_that_is_killed_while_it_saves(browser, tmp_path, checkpoint):
    """SIGKILL, masks accepted while it is away, the page closed, and all of it opened anew."""
    with make_store(tmp_path, 1) as store:
        store.promote(store.add_candidate("tiny", str(checkpoint), 1).id)
        server = Server(store.directory)
        server._command = [sys.executable, "-m", "sam_jax", "engine", "serve", str(store.directory)]
        server._command += ["--no-onnx", "--port", str(server.port)]
        context = browser.new_context(viewport=WIDE)
        url, size, lines = f"http://127.0.0.1:{server.port}", (30, 40), [LINE[:2], LINE[1:3], [(3, 3), (9, 9)]]
        try:
            server.start()
            ada = Annotator(context.new_page(), url, size=size)
            ada.wait_for("image_0.png")
            ada.press("b")
            ada.resize(3)
            for number, line in enumerate(lines):
                ada.draw(line)
                ada.press("a")
                if number == 0:
                    server.kill()
            ada.page.wait_for_selector("#saving.unsaved")
            assert len(ada.titles()) == 3
            expected = [stroke(ada.places(line), 3, size) for line in lines]
            ada.page.close()
            server.start()
            again = Annotator(context.new_page(), url, name=None, size=size)
            again.wait_for("image_0.png")
            again.page.wait_for_selector(SAVED)
            assert len(again.titles()) == 3
            assert ada.errors + again.errors == []
            found = [pixels(mask) for mask in store.masks(1)]
            np.testing.assert_array_equal(found, expected)
        finally:
            server.kill()
            context.close()
