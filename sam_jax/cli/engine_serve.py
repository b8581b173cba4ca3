"""`sam-jax engine serve`: the page on which people label."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from tyro.conf import arg

from sam_jax.cli import parsing
from sam_jax.cli.engine_store import Directory
from sam_jax.cli.serve import ServerOptions, needs_server


@dataclasses.dataclass(frozen=True, kw_only=True)
class Serve(ServerOptions):
    """Serve a store for labelling, with its present model. docs/engine.md describes the interface.

    Example:
        sam-jax engine serve my_store

    It listens on this machine alone unless --host says otherwise; then set a token, by the environment variable
    SAM_JAX_TOKEN. Annotators give a name, which tells them apart and proves nothing. A model that is promoted
    meanwhile is used from the next start on. Needs pip install "sam_jax[engine]".
    """

    directory: Directory
    stage: Annotated[
        Literal["assisted-manual", "semi-automatic", "repeat", "audit"] | None,
        arg(help="hand out tasks of this stage alone; None hands out all, the oldest first"),
    ] = None

    def run(self) -> int:
        """Serves."""
        with needs_server("engine"):
            from sam_jax.engine.server import serve_store
        from sam_jax.runtime import use_compilation_cache

        refinement = parsing.edge_refinement(self.crf, self.no_crf)
        config = self.config()
        use_compilation_cache()
        serve_store(self.directory, config, self.stage, self.dtype, refinement, not self.no_onnx, self.text_model)
        return 0
