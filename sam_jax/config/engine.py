"""How the data engine treats images and annotators."""

from __future__ import annotations

from dataclasses import dataclass

from sam_jax.config.checks import BELOW_ONE, POSITIVE, check_fields


@dataclass(frozen=True)
class EngineConfig:
    """Settings of a store, fixed when it is made.

    Attributes:
      hold_out: the share of images, chosen by their content, that is labelled for evaluation and never trained on.
      lease_seconds: an annotator who asks for an image has it for so long, and longer while the page is open.
      hint_seconds: after so long on one mask the page says that a rough mask will do (SAM paper, section 4).
    """

    hold_out: float = 0.1
    lease_seconds: float = 600.0
    hint_seconds: float = 30.0

    def __post_init__(self) -> None:
        check_fields(self, hold_out=BELOW_ONE, lease_seconds=POSITIVE, hint_seconds=POSITIVE)
