"""What every request passes before a route sees it: token, room for one more, size and time of its body."""

from __future__ import annotations

import asyncio
import base64
import hmac
import time
from collections import Counter

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sam_jax.config import ServingConfig
from sam_jax.serving.metrics import Metrics
from sam_jax.serving.refusals import Refusal, busy

JSON_BYTES = 4_000_000
OPEN = ("/v1/health",)  # to everybody, however busy
# Pages of this origin alone may use what the server sends; WebAssembly with threads needs it said.
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
}


class Guards:
    """Checks each request, and counts it."""

    def __init__(self, app: ASGIApp, config: ServingConfig, metrics: Metrics) -> None:
        self._app, self._config, self._metrics = app, config, metrics
        # As a token, or as the password of "sam_jax" for programs that can send nothing else, such as Label Studio.
        basic = base64.b64encode(f"sam_jax:{config.token}".encode()).decode()
        self._right = [f"Bearer {config.token}".encode(), f"Basic {basic}".encode()]
        self._clients: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status, start = 500, time.perf_counter()

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        client = (scope.get("client") or ("",))[0]
        try:
            self._check_token(scope)
            limit = self._body_limit(scope)
            self._enter(client, scope["path"])
        except Refusal as refusal:
            answer = JSONResponse({"error": refusal.detail}, refusal.status_code, refusal.headers)
            await answer(scope, receive, send_and_note)
            self._note(scope, status, start)
            return
        try:
            await self._app(scope, self._limited(receive, limit), send_and_note)
        finally:
            self._leave(client)
            self._note(scope, status, start)

    def _check_token(self, scope: Scope) -> None:
        path = scope["path"]
        if self._config.token is None or path in OPEN or not (path.startswith("/v1/") or path == "/metrics"):
            return
        given = Headers(scope=scope).get("authorization", "")
        if not any(hmac.compare_digest(given.encode("latin-1"), right) for right in self._right):
            raise Refusal(401, 'the token is missing or wrong; send the header "Authorization: Bearer TOKEN"')

    def _body_limit(self, scope: Scope) -> int:
        image = scope["path"].rstrip("/") == "/v1/images"
        limit = int(self._config.max_megabytes * 1e6) if image else JSON_BYTES
        said = Headers(scope=scope).get("content-length", "0")
        if said.isdecimal() and int(said[:20]) > limit:
            raise _too_large(limit)
        return limit

    def _enter(self, client: str, path: str) -> None:
        if path not in OPEN:
            if self._clients.total() >= self._config.max_requests:
                raise busy("the server has as many requests as it takes")
            if self._clients[client] >= self._config.max_requests_per_client:
                raise Refusal(429, "this address has as many requests as it may; wait for some to end", retry_after=1)
        self._clients[client] += 1
        self._metrics.in_flight.set(self._clients.total())

    def _leave(self, client: str) -> None:
        self._clients[client] -= 1
        self._clients += Counter()  # drops those that have none
        self._metrics.in_flight.set(self._clients.total())

    def _note(self, scope: Scope, status: int, start: float) -> None:
        route = getattr(scope.get("route"), "path", "other")
        self._metrics.requests.labels(route, status).inc()
        self._metrics.seconds.labels(route).observe(time.perf_counter() - start)

    def _limited(self, receive: Receive, limit: int) -> Receive:
        """`receive`, which refuses bodies that are too large or take too long."""
        taken, ends, whole = 0, time.monotonic() + self._config.request_seconds, False

        async def limited() -> Message:
            nonlocal taken, whole
            if whole:  # what comes now is that the client has gone
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), max(0.0, ends - time.monotonic()))
            except TimeoutError:
                raise Refusal(408, "the request did not arrive in time") from None
            taken += len(message.get("body", b""))
            whole = not message.get("more_body", False)
            if taken > limit:
                raise _too_large(limit)
            return message

        return limited


def _too_large(limit: int) -> Refusal:
    return Refusal(413, f"the request is larger than {limit / 1e6:g} MB, the most that is taken here")
