"""Annotators who know the answers, with clicks and a brush: one over HTTP as the page does it, one at the page."""

import uuid

import numpy as np

from sam_jax.evaluation.clicks import first_click, next_click
from sam_jax.evaluation.metrics import mask_iou
from sam_jax.inference.images import read_image
from sam_jax.ops.rle import decode_mask, encode_mask

SAME = 0.5  # IoU from which a proposed mask is taken for an object
CLICKS = 3
BRUSH_SECONDS = 0.02  # for each wrong pixel
CLICK_SECONDS = 1.5


def click_until_right(predictor, target):
    """The clicks on an object, three times corrected at most, the first mask that they find, and the last."""
    clicks, first, mask, logits = [first_click(target)], None, None, None
    while len(clicks) <= CLICKS:
        coords, labels = np.array([click[:2] for click in clicks], float), np.array([c.label for c in clicks])
        found = predictor.predict(coords, labels, mask_input=logits, multimask_output=len(clicks) == 1)
        best = int(found.iou_predictions.argmax())
        mask, logits = found.masks[best], found.low_res_masks[best : best + 1]
        first = mask if first is None else first
        click = next_click(target, mask, clicks)
        if click is None:
            break
        clicks.append(click)
    return clicks, first, mask


def runs(region):
    """Lines through the centres of the pixels of a region (H, W) bool, row by row: ((x0, y), (x1, y)) each."""
    for y, row in enumerate(region):
        ends = np.flatnonzero(np.diff(row.astype(np.int8), prepend=0, append=0))
        for start, stop in ends.reshape(-1, 2):
            yield (start + 0.5, y + 0.5), (stop - 0.5, y + 0.5)


class ScriptedAnnotator:
    """Labels whatever the server hands out.

    Args:
      client: of a server with the routes of the store.
      predictor: a `SamPredictor` of the present model.
      truth: {file name: masks (H, W) bool}.
    """

    def __init__(self, client, predictor, truth, name="ada"):
        self.client, self.predictor, self.truth, self.name = client, predictor, truth, name

    def label_all(self, store):
        """Labels until nothing is left; how many images that were."""
        images = 0
        while (answer := self.client.post("/v1/engine/next", json={"annotator": self.name})).status_code == 200:
            task = answer.json()
            image = store.image(task["image"]["id"])
            self.predictor.set_image(read_image(store.image_path(image)))
            self._label(task, self.truth[image.file_name])
            images += 1
        assert answer.status_code == 204, answer.text
        return images

    def _label(self, task, objects):
        left, order = list(objects), []
        for mask in task["masks"]:
            proposed = decode_mask(mask["segmentation"])
            match = max(left, key=lambda one: mask_iou(one, proposed), default=None)
            if match is None or mask_iou(match, proposed) < SAME:
                self._delete(task, mask)
                continue
            left = [one for one in left if one is not match]
            wrong = np.count_nonzero(match ^ proposed)
            order.append(self._put(task, match, mask["version"], mask["key"], corrections=int(wrong > 0), wrong=wrong))
        order += [self._click(task, target) for target in left]
        sent = {"annotator": self.name, "seconds": 30.0, "order": order}
        assert self.client.post(f"/v1/engine/tasks/{task['task_id']}/done", json=sent).status_code == 200

    def _click(self, task, target):
        """Clicks on an object, then paints what is still wrong; the mask's key."""
        clicks, first, mask = click_until_right(self.predictor, target)
        points = {"point_coords": [list(c[:2]) for c in clicks], "point_labels": [c.label for c in clicks], "box": None}
        wrong = np.count_nonzero(target ^ mask)
        return self._put(
            task, target, 0, str(uuid.uuid4()), corrections=len(clicks), wrong=wrong, prompts=points, proposal=first
        )

    def _put(self, task, mask, version, key, corrections, wrong, prompts=None, proposal=None):
        offered = None if proposal is None or not proposal.any() else encode_mask(proposal)
        sent = {
            "annotator": self.name,
            "version": version,
            "segmentation": encode_mask(mask),
            "prompts": prompts,
            "corrections": corrections,
            "seconds": 2 + CLICK_SECONDS * corrections + BRUSH_SECONDS * float(wrong),
            "proposal": offered,
        }
        answer = self.client.put(f"/v1/engine/tasks/{task['task_id']}/masks/{key}", json=sent)
        assert answer.status_code == 200, answer.text
        return key

    def _delete(self, task, mask):
        wanted = {"annotator": self.name, "version": mask["version"]}
        answer = self.client.delete(f"/v1/engine/tasks/{task['task_id']}/masks/{mask['key']}", params=wanted)
        assert answer.status_code == 204, answer.text


class AnnotatorAtThePage:
    """The same with a mouse and keys, in a browser: clicks, accepts, and corrects the saved mask with brush and eraser.

    Args:
      ada: an `Annotator` whose images are of one size.
      predictor: a `SamPredictor` of the present model, which says where the next click goes.
      truth: {file name: masks (H, W) bool}.
    """

    def __init__(self, ada, predictor, truth):
        self.ada, self.predictor, self.truth = ada, predictor, truth

    def label_all(self, store):
        """Labels until the page says that all images are done; how many that were."""
        labelled = 0
        while name := self._image_on_show():
            image = next(image for image in store.images() if image.file_name == name)
            self.predictor.set_image(read_image(store.image_path(image)))
            self.ada.wait_for(name)
            for target in self.truth[name]:
                self._label(store, image.id, target)
            self.ada.press("d")
            labelled += 1
            self.ada.page.wait_for_selector(f"#figures:has-text('{labelled} of ')", state="attached")
        return labelled

    def _image_on_show(self):
        state = self.ada.page.wait_for_function("""() => {
            if (document.getElementById("start-title").textContent === "All images are done") return {name: ""};
            const title = document.getElementById("title").textContent;
            const waits = !document.getElementById("wait").hidden || document.getElementById("work").hidden;
            return title.startsWith("Masks of ") && !waits && {name: title.slice("Masks of ".length)};
        }""")
        return state.json_value()["name"]

    def _label(self, store, image_id, target):
        ada, (first, *others) = self.ada, click_until_right(self.predictor, target)[0][:CLICKS]
        ada.press("c")
        ada.find(*first[:2])
        for x, y, label in others:
            ada.click(x, y, button="left" if label else "right")
            ada.page.wait_for_selector("#accept:not([disabled])")
        ada.accept()
        key = ada.page.get_attribute("#label-list li:last-child", "data-key")
        saved = next(decode_mask(mask.segmentation) for mask in store.masks(image_id) if mask.key == key)
        if np.array_equal(saved, target):
            return
        ada.page.click(f"#label-list li[data-key='{key}'] .open")
        for tool, wrong in (("b", target & ~saved), ("e", saved & ~target)):
            ada.press(tool)
            ada.resize(0.75)
            for line in runs(wrong):
                ada.draw(line)
        ada.accept()
