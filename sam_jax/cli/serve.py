"""`sam-jax serve`: a model for many users, over HTTP."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Sequence
from typing import Annotated

from tyro.conf import UseAppendAction, arg

from sam_jax.cli import parsing
from sam_jax.config import ServingConfig

_DEFAULT = ServingConfig()
TOKEN_VARIABLE = "SAM_JAX_TOKEN"
LABEL_STUDIO_VARIABLE = "LABEL_STUDIO_API_KEY"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """What all servers have in common."""

    dtype: parsing.Dtype = None
    crf: parsing.Crf = False
    no_crf: parsing.NoCrf = False
    host: Annotated[str, arg(help="address to listen on; 0.0.0.0 is all of the machine's")] = _DEFAULT.host
    port: Annotated[int, arg(help="port to listen on; 0 takes a free one")] = _DEFAULT.port
    token: Annotated[str | None, arg(help="clients have to send it; None takes SAM_JAX_TOKEN, if set")] = None
    cors: Annotated[
        UseAppendAction[tuple[str, ...]], arg(metavar="ORIGIN", help="origin whose pages may call the server")
    ] = ()
    max_megabytes: Annotated[float, arg(help="largest image file, in millions of bytes")] = _DEFAULT.max_megabytes
    max_megapixels: Annotated[float, arg(help="largest image, in millions of pixels")] = _DEFAULT.max_megapixels
    cache_megabytes: Annotated[
        float, arg(help="memory for images and their embeddings; the least recently used go first")
    ] = _DEFAULT.cache_megabytes
    max_requests: Annotated[int, arg(help="requests at a time; more are told to come again (503)")] = (
        _DEFAULT.max_requests
    )
    max_requests_per_client: Annotated[int, arg(help="the same for one address (429)")] = (
        _DEFAULT.max_requests_per_client
    )
    max_batch: Annotated[
        int | None, arg(help="prompts that the decoder works on at once; 8, and on a CPU a prompt for each core")
    ] = _DEFAULT.max_batch
    text_model: Annotated[
        str | None, arg(metavar="DIR", help="CLIP or SigLIP 2, as `sam-jax convert from-clip` writes it, for phrases")
    ] = None
    no_onnx: Annotated[bool, arg(help="do not offer the model as ONNX files")] = False

    def config(self) -> ServingConfig:
        """The settings of the server. Raises ValueError."""
        own = {field.name for field in dataclasses.fields(ServingConfig)}
        said = {name: value for name, value in vars(self).items() if name in own}
        return ServingConfig(**said | {"token": self.token or os.environ.get(TOKEN_VARIABLE) or None})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Serve(ServerOptions):
    """Serve a model over HTTP: images and prompts in, masks out. docs/serving.md describes the interface.

    Examples:
        sam-jax serve
        sam-jax serve --checkpoint checkpoints/sam_vit_b --port 9000 --cors https://example.org
        sam-jax serve --text-model checkpoints/clip_vit_b_32
        LABEL_STUDIO_API_KEY=KEY sam-jax serve --label-studio http://localhost:8080

    It listens on this machine alone unless --host says otherwise; then set a token, by the environment variable
    SAM_JAX_TOKEN rather than --token, which other users of the machine can see. SIGTERM ends it when all that runs is
    answered. Needs pip install "sam_jax[serve]".
    """

    checkpoint: parsing.Checkpoint = None
    label_studio: Annotated[
        str | None, arg(metavar="URL", help="be a model of this Label Studio, at /v1/label-studio (docs/engine.md)")
    ] = None

    def run(self) -> None:
        """Serves."""
        with needs_server("serve"):
            from sam_jax.serving.server import serve
        from sam_jax.runtime import use_compilation_cache

        refinement = parsing.edge_refinement(self.crf, self.no_crf)
        config, routers = self.config(), []
        if self.label_studio:
            from sam_jax.engine.label_studio import LabelStudio, create_router

            routers.append(create_router(LabelStudio(self.label_studio, os.environ.get(LABEL_STUDIO_VARIABLE))))
        use_compilation_cache()
        serve(config, self.checkpoint, self.dtype, refinement, not self.no_onnx, self.text_model, routers)


@contextlib.contextmanager
def needs_server(extra: str) -> Iterator[None]:
    """Says which extra to install where the libraries of the server are missing. Raises ValueError."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name not in ("fastapi", "starlette", "uvicorn", "prometheus_client", "pydantic"):
            raise
        raise ValueError(
            f"{error.name} is not installed; the server needs it: pip install 'sam_jax[{extra}]'"
        ) from None


def main(argv: Sequence[str] | None = None, program: str = "sam-jax serve") -> int:
    """Runs the command; bad input ends in one line on stderr and exit code 2."""
    command = parsing.parse(Serve, program, argv)
    return parsing.run(program, command.run)
