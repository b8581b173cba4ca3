"""The routes: HTTP on one side, `SegmentationService` on the other."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.staticfiles import StaticFiles

from sam_jax import __version__
from sam_jax.serving.everything import EverythingRuns, Find
from sam_jax.serving.guards import Guards
from sam_jax.serving.model_files import ABSENT, ModelFiles
from sam_jax.serving.refusals import Refusal, one_line
from sam_jax.serving.schemas import Error, EverythingIn, Health, ImageOut, MasksIn, MasksOut, ModelOut, TextIn, as_json
from sam_jax.serving.service import SegmentationService

STATIC = Path(__file__).parent / "static"
BINARY = "application/octet-stream"
_LOG = logging.getLogger(__name__)
_REFUSALS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": Error, "description": "not done, and why"},
    503: {"model": Error, "description": "too busy; Retry-After says when to come again"},
}
_NO_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>sam_jax</title>
<p>The server runs. Its page is not built yet: run <code>npm ci --prefix web</code> in the clone (Node 20 or newer),
then start the server again. Programs find the interface in <a href="/v1/openapi.json">/v1/openapi.json</a>.</p>
"""
T = TypeVar("T")


def create_app(service: SegmentationService, files: ModelFiles | None = None, static: Path = STATIC) -> FastAPI:
    """The application of a service.

    Args:
      files: the model as ONNX; None has none.
      static: a page to serve at /, where it has an index.html.
    """

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        if files is not None:
            files.start()
        yield
        if files is not None:
            files.stop()
        service.close()

    app = FastAPI(
        title="sam_jax",
        version=__version__,
        lifespan=lifespan,
        openapi_url="/v1/openapi.json",
        docs_url=None,  # its page would be fetched from elsewhere
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.service, app.state.files, app.state.runs = service, files, EverythingRuns(service)
    app.include_router(routes)
    _add_page(app, static)
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(Exception, _failed)
    app.add_middleware(Guards, config=service.config, metrics=service.metrics)
    if service.config.cors:  # around the guards: pages shall read why they are refused, too
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(service.config.cors),
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["Authorization", "Content-Type", "Accept"],
            expose_headers=["Location", "Retry-After", "X-Embedding-Shape", "X-Image-Id", "X-Input-Size", "X-Size"],
        )
    return app


routes = APIRouter(responses=_REFUSALS)


def _service(request: Request) -> SegmentationService:
    service: SegmentationService = request.app.state.service
    return service


async def _in_thread(pool: Executor, work: Callable[..., T], *arguments: Any) -> T:
    return await asyncio.get_running_loop().run_in_executor(pool, work, *arguments)


@routes.post(
    "/v1/images",
    status_code=201,
    response_model=ImageOut,
    responses={201: {"content": {BINARY: {"schema": {"type": "string", "format": "binary"}}}}},
    openapi_extra={"requestBody": {"required": True, "content": {"image/*": {"schema": {"type": "string"}}}}},
)
async def add_image(request: Request) -> Response:
    """Encodes an image: the body is a JPEG, PNG, WebP, GIF, BMP or TIFF file, which is turned upright by its EXIF.

    With "Accept: application/octet-stream" the answer is the embedding, as /v1/images/{id}/embedding gives it, and what
    else there is to say stands in headers.
    """
    service, content = _service(request), bytearray()
    async for part in request.stream():
        content += part
    name = await _in_thread(service.readers, service.add_image, bytes(content))
    image = service.images.get(name)
    about = ImageOut(
        id=name,
        size=image.original_size,
        input_size=image.input_size,
        image_size=service.model.config.image_size,
        embedding_shape=service.embedding_shape,
    )
    location = {"Location": f"/v1/images/{name}"}
    if BINARY not in request.headers.get("accept", ""):
        return JSONResponse(as_json(about), 201, location)
    sizes = {"X-Size": about.size, "X-Input-Size": about.input_size}
    said = {key: ",".join(map(str, value)) for key, value in sizes.items()}
    answer = await _embedding(service, name)
    answer.headers.update(location | said | {"X-Image-Id": name})
    answer.status_code = 201
    return answer


@routes.get(
    "/v1/images/{image_id}/embedding",
    response_class=Response,
    responses={200: {"content": {BINARY: {"schema": {"type": "string", "format": "binary"}}}}},
)
async def get_embedding(request: Request, image_id: str) -> Response:
    """An image's embedding: little-endian float16, C order, of the shape that X-Embedding-Shape says, (1, C, h, w)."""
    return await _embedding(_service(request), image_id)


async def _embedding(service: SegmentationService, name: str) -> Response:
    content = await _in_thread(service.workers, service.embedding, name)
    return Response(
        content, media_type=BINARY, headers={"X-Embedding-Shape": ",".join(map(str, service.embedding_shape))}
    )


@routes.delete("/v1/images/{image_id}", status_code=204, response_class=Response)
async def remove_image(request: Request, image_id: str) -> Response:
    """Forgets an image."""
    _service(request).images.remove(image_id)
    return Response(status_code=204)


@routes.post("/v1/images/{image_id}/masks", response_model=MasksOut)
async def find_masks(request: Request, image_id: str, wanted: MasksIn) -> Response:
    """Masks of objects that points, boxes or earlier masks tell of."""
    service = _service(request)

    def work() -> str:
        return service.find_masks(image_id, wanted).model_dump_json(exclude_none=True)

    return Response(await _in_thread(service.workers, work), media_type="application/json")


@routes.post(
    "/v1/images/{image_id}/everything",
    response_class=StreamingResponse,
    responses={200: {"content": {"text/event-stream": {}}}},
)
async def find_everything(request: Request, image_id: str, wanted: EverythingIn) -> Response:
    """Everything in an image, as server-sent events.

    Events are `progress` with {"done", "total"} points, and last `masks` with {"image_id", "size", "masks"} or `error`
    with {"error"}. To cancel, close the connection.
    """
    return _events(request, image_id, partial(_service(request).find_everything, image_id, wanted))


@routes.post(
    "/v1/images/{image_id}/text",
    response_class=StreamingResponse,
    responses={200: {"content": {"text/event-stream": {}}}},
)
async def find_phrases(request: Request, image_id: str, wanted: TextIn) -> Response:
    """What phrases name: events as of /everything; masks have `text` and `score`, phrase by phrase, the best first.

    An image's candidates are kept for a while, so that its next phrase takes no time.
    """
    search = _service(request).phrase_search
    if search is None:
        raise Refusal(404, "the server has no text model; start it with --text-model DIR")
    await _in_thread(_service(request).workers, search.check, wanted.phrases)
    return _events(request, image_id, partial(search.find, image_id, wanted))


def _events(request: Request, image_id: str, find: Find) -> Response:
    events = request.app.state.runs.start(image_id, find, request.is_disconnected)
    return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-store"})


@routes.get("/v1/model", response_model=ModelOut)
async def get_model(request: Request) -> ModelOut:
    """What model this is, for those who run its ONNX decoder themselves."""
    service, files = _service(request), request.app.state.files
    config = service.model.config
    return ModelOut(
        name=service.name,
        image_size=config.image_size,
        embedding_shape=service.embedding_shape,
        prompt_embed_dim=config.prompt_embed_dim,
        low_res_size=service.low,
        mask_threshold=config.mask_threshold,
        crf=config.crf,
        phrases=service.phrase_search is not None,
        text_prompts=service.phrase_search is not None and config.text_embed_dim > 0,
        onnx=ABSENT if files is None else files.state(),
    )


@routes.get("/v1/model/{file}", response_class=FileResponse)
async def get_model_file(request: Request, file: str) -> Response:
    """decoder.onnx or encoder.onnx, see docs/onnx.md; 503 while they are being made."""
    files: ModelFiles | None = request.app.state.files
    if files is None:
        raise Refusal(404, "the server was started without ONNX files")
    return FileResponse(files.path(file), media_type=BINARY)


@routes.get("/v1/health", response_model=Health)
async def get_health(request: Request) -> Health:
    """Whether the server works."""
    service = _service(request)
    in_flight = int(service.metrics.registry.get_sample_value("sam_jax_requests_in_flight") or 0)
    return Health(status="ok", version=__version__, model=service.name, images=len(service.images), requests=in_flight)


@routes.get("/metrics", response_class=Response, include_in_schema=False)
async def get_metrics(request: Request) -> Response:
    """Prometheus's format."""
    service = _service(request)
    service.metrics.images.set(len(service.images))
    service.metrics.cached_bytes.set(service.images.num_bytes)
    return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")


def _add_page(app: FastAPI, static: Path) -> None:
    if (static / "index.html").exists():
        app.mount("/", StaticFiles(directory=static, html=True), name="page")
        return

    @app.get("/", include_in_schema=False)
    async def no_page() -> Response:
        return HTMLResponse(_NO_PAGE)


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": one_line(error.detail)}, error.status_code, error.headers)


async def _invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"] if part != "body")
    return JSONResponse({"error": one_line(f"{place or 'the body'}: {first['msg']}")}, 422)


async def _failed(request: Request, error: Exception) -> Response:
    _LOG.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return JSONResponse({"error": "the server failed; its log says why"}, 500)
