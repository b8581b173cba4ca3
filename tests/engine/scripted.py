"""An annotator who knows the answers: labels a store over HTTP as the page does, with clicks and a brush."""

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
        """Clicks on an object, three times at most, then paints what is still wrong; the mask's key."""
        clicks, first, mask, logits = [first_click(target)], None, None, None
        while len(clicks) <= CLICKS:
            coords, labels = np.array([click[:2] for click in clicks], float), np.array([c.label for c in clicks])
            found = self.predictor.predict(coords, labels, mask_input=logits, multimask_output=len(clicks) == 1)
            best = int(found.iou_predictions.argmax())
            mask, logits = found.masks[best], found.low_res_masks[best : best + 1]
            first = mask if first is None else first
            click = next_click(target, mask, clicks)
            if click is None:
                break
            clicks.append(click)
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
