"""An annotator at the page, and numpy's word on what brushes and polygons hold."""

import numpy as np

from sam_jax.ops.rle import decode_mask
from tests.predicting import H, W
from tests.serving import browsing

SAVED = "#saving[data-state=saved]"
MARGIN = 16  # of the page, around the image
WIDE = {"width": 1280, "height": 800}
LINE = [(20.3, 10.2), (31.7, 18.4), (44, 15), (44, 40)]
TRIANGLE = [(60, 8), (90.5, 20.25), (66, 48)]


def pixels(mask):
    """(H, W) bool of a mask of the store."""
    return decode_mask(mask.segmentation)


def hundredths(value):
    """As the page keeps places of strokes and polygons."""
    return np.floor(np.asarray(value, float) * 100 + 0.5) / 100


def centres(size):
    """(H, W) x and y of pixels' centres."""
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    return x, y


def stroke(points, radius, size=(H, W)):
    """(H, W) bool: pixels whose centre is at most so far from any segment of a line."""
    points = hundredths(points)
    x, y = centres(size)
    held = np.zeros(size, bool)
    for (ax, ay), (bx, by) in zip(points[[0, *range(len(points) - 1)]], points, strict=True):
        dx, dy = bx - ax, by - ay
        px, py = x - ax, y - ay
        squared = dx * dx + dy * dy
        along = np.clip((px * dx + py * dy) / squared, 0, 1) if squared > 0 else np.zeros(size)
        held |= (px - along * dx) ** 2 + (py - along * dy) ** 2 <= radius * radius
    return held


def polygon(vertices, size=(H, W)):
    """(H, W) bool: pixels whose centre is inside by the even-odd rule."""
    vertices = hundredths(vertices)
    x, y = centres(size)
    inside = np.zeros(size, bool)
    for (ax, ay), (bx, by) in zip(vertices, np.roll(vertices, -1, 0), strict=True):
        if ay != by:
            inside ^= ((ay > y) != (by > y)) & (x < ax + (y - ay) * (bx - ax) / (by - ay))
    return inside


class Annotator:
    """A user of the page for annotators."""

    def __init__(self, page, url, name="ada", size=(H, W)):
        self.page, self.size, self.errors = page, size, []
        page.set_default_timeout(browsing.WAIT)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.goto(f"{url}/annotate.html")
        if name:
            page.wait_for_selector("#name-dialog[open]")
            page.keyboard.type(name)
            page.keyboard.press("Enter")

    def wait_for(self, file_name):
        """Until an image is there; it is shown as large as it fits."""
        self.page.wait_for_selector(f"#title:has-text('{file_name}')", state="attached")
        height, width = self.page.evaluate("""() => {
            const {clientHeight, clientWidth} = document.getElementById("stage");
            return [clientHeight, clientWidth];
        }""")
        free = min((height - 2 * MARGIN) / self.size[0], (width - 2 * MARGIN) / self.size[1])
        self.scale = np.floor(free) if free >= 3 else free
        box = self.page.locator("#stage").bounding_box()
        self.corner = [
            box[start] + np.floor((room - length * self.scale) / 2 + 0.5)
            for start, room, length in (("x", width, self.size[1]), ("y", height, self.size[0]))
        ]

    def at(self, x, y):
        """Where a place of the image is on the page: on whole pixels of the screen, so that it is known for sure."""
        return tuple(np.round(corner + self.scale * value) for corner, value in zip(self.corner, (x, y), strict=True))

    def places(self, points):
        """The places of the image that `at` really hits."""
        return [
            [(on_screen - corner) / self.scale for corner, on_screen in zip(self.corner, self.at(*point), strict=True)]
            for point in points
        ]

    def press(self, *keys):
        for key in keys:
            self.page.keyboard.press(key)

    def click(self, x, y, **options):
        self.page.mouse.click(*self.at(x, y), **options)

    def find(self, x, y):
        """A click of the model's, and its answer."""
        self.click(x, y)
        self.page.wait_for_selector("#accept:not([disabled])")

    def draw(self, points):
        """A line with the mouse."""
        first, *others = [self.at(*point) for point in points]
        self.page.mouse.move(*first)
        self.page.mouse.down()
        for place in others:
            self.page.mouse.move(*place)
        self.page.mouse.up()

    def resize(self, radius):
        self.page.fill("#radius", str([0.75, 1, 1.5, 2, 3, 4, 6, 8, 12].index(radius)))

    def accept(self, key="a"):
        """Accepts, and waits until it is saved."""
        count = self.page.locator("#label-list li").count()
        new = self.page.inner_text("#object-title") == "New mask"
        self.press(key)
        if new:
            self.page.wait_for_selector(f"#label-list li:nth-child({count + 1})")
        self.page.wait_for_selector(SAVED)

    def titles(self):
        return self.page.locator("#label-list b").all_inner_texts()
