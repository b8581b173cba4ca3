"""The server as Label Studio's model: a click or a box there becomes a brush mask.

Label Studio calls its models by HTTP: GET /health, POST /setup with a project's labelling interface, and POST /predict
with a task and, in `params.context`, what was drawn. Source: the published contract of label-studio-ml-backend.
"""

from __future__ import annotations

import contextlib
import json
import urllib.parse
import urllib.request
import uuid
from collections import OrderedDict
from collections.abc import Callable, Sequence
from http.client import HTTPMessage
from threading import Lock
from typing import IO, Any, NamedTuple
from xml.etree import ElementTree

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool

from sam_jax.engine.brush import encode_brush
from sam_jax.ops.rle import decode_mask
from sam_jax.serving.refusals import Refusal
from sam_jax.serving.schemas import MasksIn, ObjectIn
from sam_jax.serving.service import SegmentationService

PREFIX = "/v1/label-studio"
_SECONDS = 30.0  # that Label Studio may take to send an image
_KEPT = 1000  # images whose ids are remembered
_MAX_INTERFACE = 200_000  # characters


class Interface(NamedTuple):
    """What of a labelling interface is needed: names of the brush and the image, and the field with its address."""

    brush: str
    image: str
    field: str


def parse_interface(text: str) -> Interface:
    """The first BrushLabels of a labelling interface, and its Image. Raises Refusal (422) where there is none."""
    if len(text) > _MAX_INTERFACE or "<!" in text:  # no document types, whose entities may grow without end
        raise Refusal(422, f"the labelling interface is longer than {_MAX_INTERFACE} characters or has a <! in it")
    try:
        tags = list(ElementTree.fromstring(text).iter())
    except ElementTree.ParseError as error:
        raise Refusal(422, f"the labelling interface is not XML ({error})") from None
    images = {tag.get("name"): tag.get("value", "") for tag in tags if tag.tag == "Image"}
    for tag in tags:
        name, image = tag.get("name"), tag.get("toName")
        if tag.tag == "BrushLabels" and name and image in images and images[image].startswith("$"):
            return Interface(name, str(image), images[image][1:])
    raise Refusal(
        422, 'the labelling interface has no BrushLabels for an Image whose value is a field, such as "$image"'
    )


class Drawn(NamedTuple):
    """What the annotator has drawn, in pixels of the image, and the label that was chosen."""

    prompt: ObjectIn
    size: tuple[int, int]
    label: str | None


def parse_context(results: Sequence[dict[str, Any]]) -> Drawn | None:
    """Clicks and the last box of a context; None without any. Raises Refusal (422) for what is no such thing."""
    points: list[list[float]] = []
    labels: list[Any] = []
    box, label, size = None, None, (0, 0)
    try:
        for result in results:
            kind, value = result["type"], result["value"]
            if kind not in ("keypointlabels", "keypoint", "rectanglelabels", "rectangle"):
                continue
            w, h = int(result["original_width"]), int(result["original_height"])
            x, y, size = w * value["x"] / 100, h * value["y"] / 100, (h, w)
            label = next(iter(value.get(kind, ())), label)
            if kind.startswith("keypoint"):
                points.append([x, y])
                labels.append(int(result.get("is_positive", 1)))
            else:
                box = [x, y, x + w * value["width"] / 100, y + h * value["height"] / 100]
        if not points and box is None:
            return None
        given = {"point_coords": points or None, "point_labels": labels or None, "box": box}
        return Drawn(ObjectIn.model_validate(given), size, label)
    except (KeyError, TypeError, ValueError) as error:
        raise Refusal(422, f"the context is not one of clicks and boxes ({error!r})") from None


class _SameOrigin(urllib.request.HTTPRedirectHandler):
    """Follows redirects within Label Studio alone: none leads to another host with its key."""

    def __init__(self, allowed: Callable[[str], bool]) -> None:
        self._allowed = allowed

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> urllib.request.Request | None:
        """None where it leads elsewhere, which becomes an HTTPError."""
        return super().redirect_request(req, fp, code, msg, headers, newurl) if self._allowed(newurl) else None


class LabelStudio:
    """Fetches images of tasks, and of nowhere else."""

    def __init__(self, url: str, key: str | None) -> None:
        """Takes the address of Label Studio and a user's key, an access token or a legacy one.

        Raises:
          ValueError: it is no address.
        """
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise ValueError(f"{url!r} is no address of Label Studio; expected one such as http://localhost:8080")
        self._url, self._key = url.rstrip("/"), key
        self._opener = urllib.request.build_opener(_SameOrigin(self._is_own))

    def fetch(self, address: str, max_bytes: int) -> bytes:
        """An image's file. Raises Refusal (422) for one that lies elsewhere or cannot be had."""
        whole = urllib.parse.urljoin(f"{self._url}/", address)
        if not self._is_own(whole):
            raise Refusal(422, f"the image {address} does not lie in Label Studio at {self._url}; import it there")
        try:
            with self._opener.open(
                urllib.request.Request(whole, headers=self._authorization()), timeout=_SECONDS
            ) as answer:
                content: bytes = answer.read(max_bytes + 1)
        except (OSError, ValueError, KeyError) as error:
            raise Refusal(422, f"Label Studio did not give the image {address}: {error}; is its key right?") from error
        if len(content) > max_bytes:
            raise Refusal(413, f"the image is larger than {max_bytes / 1e6:g} MB, the most that is taken here")
        return content

    def _is_own(self, address: str) -> bool:
        own, other = urllib.parse.urlsplit(self._url), urllib.parse.urlsplit(address)
        return (own.scheme, own.netloc) == (other.scheme, other.netloc)

    def _authorization(self) -> dict[str, str]:
        if not self._key:
            return {}
        if self._key.count(".") != 2:
            return {"Authorization": f"Token {self._key}"}
        # A personal access token is exchanged for one of five minutes.
        content = json.dumps({"refresh": self._key}).encode()
        request = urllib.request.Request(
            f"{self._url}/api/token/refresh", content, {"Content-Type": "application/json"}
        )
        with self._opener.open(request, timeout=_SECONDS) as answer:
            return {"Authorization": f"Bearer {json.load(answer)['access']}"}


class _Backend:
    """Predictions for tasks. Safe for threads."""

    def __init__(self, source: LabelStudio) -> None:
        self._source = source
        self._ids: OrderedDict[str, str] = OrderedDict()
        self._lock = Lock()

    def predict(self, service: SegmentationService, asked: dict[str, Any]) -> list[dict[str, Any]]:
        """A prediction for each task; without anything drawn it is empty."""
        tasks, context = asked.get("tasks") or [], (asked.get("params") or {}).get("context") or {}
        drawn = parse_context(context.get("result") or []) if isinstance(context, dict) else None
        if drawn is None or len(tasks) != 1:
            return [{"result": [], "score": 0.0, "model_version": service.name} for _ in tasks]
        interface = parse_interface(asked.get("label_config") or "")
        address = (tasks[0].get("data") or {}).get(interface.field)
        if not isinstance(address, str):
            raise Refusal(422, f"the task has no {interface.field!r} with the image's address")
        return [self._segment(service, interface, drawn, address)]

    def _segment(
        self, service: SegmentationService, interface: Interface, drawn: Drawn, address: str
    ) -> dict[str, Any]:
        single = len(drawn.prompt.point_coords or ()) == 1 and drawn.prompt.box is None
        wanted = MasksIn(objects=[drawn.prompt], multimask_output=single, format="rle", low_res_masks=False)
        found = service.find_masks(self._image(service, address), wanted)
        if tuple(found.size) != drawn.size:
            raise Refusal(
                422,
                f"the image is {found.size[::-1]} pixels here and {drawn.size[::-1]} in Label Studio: is it rotated?",
            )
        best = max(found.objects[0].masks, key=lambda mask: mask.predicted_iou)
        rle = encode_brush(decode_mask(best.segmentation.model_dump()))  # type: ignore[union-attr]
        region = {
            "id": uuid.uuid4().hex[:10],
            "type": "brushlabels",
            "from_name": interface.brush,
            "to_name": interface.image,
            "original_width": found.size[1],
            "original_height": found.size[0],
            "image_rotation": 0,
            "score": best.predicted_iou,
            "value": {"format": "rle", "rle": rle} | ({} if drawn.label is None else {"brushlabels": [drawn.label]}),
        }
        return {"result": [region], "score": best.predicted_iou, "model_version": service.name}

    def _image(self, service: SegmentationService, address: str) -> str:
        """The id of an image, which is fetched where the server does not have it, or no longer."""
        with self._lock:
            known = self._ids.get(address)
        if known is not None:
            with contextlib.suppress(Refusal):  # it has made room for others
                service.images.get(known)
                return known
        name = service.add_image(self._source.fetch(address, int(service.config.max_megabytes * 1e6)))
        with self._lock:
            self._ids[address] = name
            while len(self._ids) > _KEPT:
                self._ids.popitem(last=False)
        return name


def create_router(source: LabelStudio) -> APIRouter:
    """Routes below /v1/label-studio, for `create_app`. Give Label Studio that address as the model's."""
    router, backend = APIRouter(prefix=PREFIX), _Backend(source)

    @router.get("/health")
    async def health(request: Request) -> dict[str, str]:
        """Whether the model is there."""
        return {"status": "UP", "model_class": "SegmentAnything", "model_version": request.app.state.service.name}

    @router.post("/setup")
    async def setup(request: Request, asked: dict[str, Any]) -> dict[str, str]:
        """A project begins to use the model: its labelling interface is checked."""
        parse_interface(asked.get("schema") or "")
        return {"model_version": request.app.state.service.name}

    @router.post("/predict")
    async def predict(request: Request, asked: dict[str, Any]) -> dict[str, Any]:
        """Masks of clicks and boxes."""
        return {"results": await run_in_threadpool(backend.predict, request.app.state.service, asked)}

    @router.post("/webhook")
    async def webhook() -> dict[str, str]:
        """Annotations were made; they are taken in by `sam-jax engine import` from an export."""
        return {"status": "ok"}

    return router
