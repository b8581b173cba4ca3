"""How the server treats those who ask it."""

from __future__ import annotations

from dataclasses import dataclass

from sam_jax.config.checks import GIVEN, POSITIVE, Range, check_fields

_PORT = Range(lambda x: 0 <= x < 2**16, "a port, 0 to 65535; 0 takes a free one")


@dataclass(frozen=True)
class ServingConfig:
    """Where the server listens, who may use it, and how much of it.

    Attributes:
      host: address to listen on; "0.0.0.0" is all of the machine's.
      port: TCP port; 0 takes a free one.
      token: clients have to send it as "Authorization: Bearer TOKEN"; None lets everybody in who can connect.
      cors: origins whose pages may call the server, such as "https://example.org".
      max_megabytes: the largest image file that is taken, in millions of bytes.
      max_megapixels: the largest image, in millions of pixels.
      cache_megabytes: memory for images and their embeddings; the least recently used ones go first.
      max_requests: requests that are worked on or wait; more are told to come again (503).
      max_requests_per_client: the same for one address (429).
      max_batch: prompts that the decoder works on at once, rounded down to a power of two; None means 8, and on a CPU a
        prompt for each core.
      threads: requests whose masks are enlarged and encoded at the same time.
      everything_runs: everything mode at the same time; as many again may wait.
      request_seconds: a request has to arrive within this time.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = None
    cors: tuple[str, ...] = ()
    max_megabytes: float = 20.0
    max_megapixels: float = 25.0
    cache_megabytes: float = 1000.0
    max_requests: int = 128
    max_requests_per_client: int = 64
    max_batch: int | None = None
    threads: int = 8
    everything_runs: int = 1
    request_seconds: float = 60.0

    def __post_init__(self) -> None:
        sizes = ("max_megabytes", "max_megapixels", "cache_megabytes", "max_requests", "max_requests_per_client")
        names = (*sizes, "max_batch", "threads", "everything_runs", "request_seconds")
        check_fields(self, host=GIVEN, port=_PORT, token=GIVEN, cors=GIVEN, **dict.fromkeys(names, POSITIVE))
