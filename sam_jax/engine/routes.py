"""The store over HTTP, for the page on which people label: added to the server's own routes, behind its guards.

GET    /v1/engine                           where the store stands
POST   /v1/engine/next                      {annotator, image_id?, shared?, passed?}: an image; 204 when nothing is left
GET    /v1/engine/images/{id}/file          the image's file
POST   /v1/engine/tasks/{id}/renew          {annotator}: keep the image for longer
PUT    /v1/engine/tasks/{id}/masks/{key}    accept a mask; sending the same once more changes nothing
DELETE /v1/engine/tasks/{id}/masks/{key}    ?annotator=NAME&version=N
POST   /v1/engine/tasks/{id}/done           {annotator, seconds, order}: the answer is that of GET /v1/engine
POST   /v1/engine/tasks/{id}/release        {annotator}: give the image back unfinished

An annotator's name tells people apart; it is no proof of who they are. Who may use the server at all is for its token.
A finished image that is asked for by image_id is opened again. A lease that has run out is still good for saving until
somebody else takes the image. Empty masks are refused (422): delete them. An answer 200 to a PUT means that the mask is
on disk. 404 says that there is no such image, task or mask, 503 that the store is busy or its disk is full.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi.responses import FileResponse, JSONResponse, Response
from pydantic import BaseModel

from sam_jax.engine.messages import (
    Annotator,
    AnnotatorIn,
    DoneIn,
    EngineMask,
    EngineOut,
    LeaseOut,
    MaskConflict,
    MaskIn,
    NextIn,
    NotHeldOut,
    TaskOut,
    engine_out,
    mask_out,
    task_out,
)
from sam_jax.engine.rows import ModelVersion, NotFound, NotHeld, VersionConflict
from sam_jax.engine.store import Store
from sam_jax.serving.refusals import Error, Refusal

THREADS = 4
_REFUSALS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": Error, "description": "not done, and why"},
    409: {"model": MaskConflict | NotHeldOut, "description": "the mask has changed, or somebody else has the image"},
    503: {"model": Error, "description": "the store cannot be written; Retry-After says when to come again"},
}
_ON_TASK = "/v1/engine/tasks/{task_id}"


class EngineService:
    """What the routes call, in threads; close it when done, before the store."""

    def __init__(self, store: Store, model: ModelVersion, stage: str | None = None) -> None:
        """
        Args:
          model: the version that the server runs.
          stage: hand out tasks of this stage alone; None hands out all.
        """
        self._store, self._model, self._stage = store, model, stage
        self._config = store.config
        self._threads = ThreadPoolExecutor(THREADS, "store")

    async def run(self, work: Callable[..., Any], *arguments: Any) -> Response:
        """The answer that a method of this class gives, or its refusal."""
        try:
            found = await asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)
        except NotHeld as error:
            task = error.task
            return _json(NotHeldOut(error=str(error), annotator=task.annotator), 409)
        except VersionConflict as error:
            present = None if error.present is None else mask_out(error.present)
            return _json(MaskConflict(error=str(error), mask=present), 409)
        except NotFound as error:
            raise Refusal(404, str(error)) from error
        except ValueError as error:
            raise Refusal(422, str(error)) from error
        except sqlite3.OperationalError as error:
            raise Refusal(503, f"the store cannot be used now ({error}); try again", retry_after=1) from error
        if isinstance(found, Response):
            return found
        return Response(status_code=204) if found is None else _json(found)

    def close(self) -> None:
        """Finishes what was begun."""
        self._threads.shutdown()

    def about(self) -> EngineOut:
        """Where the store stands."""
        present = self._store.present().name
        return engine_out(self._store.statistics(), self._model.name, present, self._config.hint_seconds)

    def claim(self, wanted: NextIn) -> TaskOut | None:
        """The next image."""
        lease = self._config.lease_seconds
        task = self._store.claim_next(
            wanted.annotator, self._stage, wanted.image_id, lease, wanted.shared, wanted.passed
        )
        if task is None:
            return None
        return task_out(task, self._store.image(task.image_id), self._store.task_masks(task), lease)

    def image_file(self, image_id: int) -> Response:
        """An image's file."""
        path = self._store.image_path(self._store.image(image_id))
        if not path.is_file():
            raise NotFound(f"the file of image {image_id} is gone from the store's directory; put it back")
        return FileResponse(path)

    def renew(self, task_id: int, wanted: AnnotatorIn) -> LeaseOut:
        """Keeps a task."""
        lease = self._config.lease_seconds
        self._store.renew(task_id, wanted.annotator, lease)
        return LeaseOut(lease_seconds=lease)

    def save(self, task_id: int, key: str, wanted: MaskIn) -> EngineMask:
        """Accepts a mask."""
        draft = wanted.draft(key)
        return mask_out(self._store.save_mask(task_id, wanted.annotator, draft, wanted.version, self._model.id))

    def delete(self, task_id: int, key: str, annotator: str, version: int) -> None:
        """Deletes a mask."""
        self._store.delete_mask(task_id, annotator, key, version)

    def finish(self, task_id: int, wanted: DoneIn) -> EngineOut:
        """Marks a task as done."""
        self._store.finish(task_id, wanted.annotator, wanted.seconds, wanted.order, self._model.id)
        return self.about()

    def release(self, task_id: int, wanted: AnnotatorIn) -> None:
        """Gives a task back."""
        self._store.release(task_id, wanted.annotator)


def create_router(engine: EngineService) -> APIRouter:
    """The routes of a store, for `create_app`."""
    routes = APIRouter(responses=_REFUSALS)

    @routes.get("/v1/engine", response_model=EngineOut)
    async def get_engine() -> Response:
        """Where the store stands."""
        return await engine.run(engine.about)

    @routes.post("/v1/engine/next", response_model=TaskOut, responses={204: {"description": "nothing is left"}})
    async def next_image(wanted: NextIn) -> Response:
        """An image to label; who holds one already gets that one again."""
        return await engine.run(engine.claim, wanted)

    @routes.get("/v1/engine/images/{image_id}/file", response_class=FileResponse)
    async def get_image_file(image_id: int) -> Response:
        """An image's file."""
        return await engine.run(engine.image_file, image_id)

    @routes.post(f"{_ON_TASK}/renew", response_model=LeaseOut)
    async def renew(task_id: int, wanted: AnnotatorIn) -> Response:
        """Keeps an image for longer."""
        return await engine.run(engine.renew, task_id, wanted)

    @routes.put(f"{_ON_TASK}/masks/{{key}}", response_model=EngineMask)
    async def save_mask(task_id: int, key: str, wanted: MaskIn) -> Response:
        """Accepts a mask; `key` is a UUID that the client makes. On disk when answered 200; safe to send again."""
        return await engine.run(engine.save, task_id, key, wanted)

    @routes.delete(f"{_ON_TASK}/masks/{{key}}", status_code=204, response_class=Response)
    async def delete_mask(
        task_id: int, key: str, annotator: Annotated[Annotator, Query()], version: Annotated[int, Query(ge=0)]
    ) -> Response:
        """Deletes a mask."""
        return await engine.run(engine.delete, task_id, key, annotator, version)

    @routes.post(f"{_ON_TASK}/done", response_model=EngineOut)
    async def finish(task_id: int, wanted: DoneIn) -> Response:
        """Marks an image as done."""
        return await engine.run(engine.finish, task_id, wanted)

    @routes.post(f"{_ON_TASK}/release", status_code=204, response_class=Response)
    async def release(task_id: int, wanted: AnnotatorIn) -> Response:
        """Gives an image back; what was saved stays."""
        return await engine.run(engine.release, task_id, wanted)

    return routes


def _json(found: BaseModel, status: int = 200) -> Response:
    return JSONResponse(found.model_dump(), status)
