"""What the server says no to: a status, and one line that says why."""

from __future__ import annotations

from pydantic import BaseModel
from starlette.exceptions import HTTPException

MAX_REASON = 300  # characters


class Error(BaseModel):
    """Why a request was not done, in one line."""

    error: str


class Refusal(HTTPException):
    """A request that is not done; `reason` becomes one line."""

    def __init__(self, status: int, reason: str, retry_after: int | None = None) -> None:
        headers = None if retry_after is None else {"Retry-After": str(retry_after)}
        super().__init__(status, one_line(reason), headers)


def one_line(text: object) -> str:
    """Text without line breaks and not too long."""
    line = " ".join(str(text).split())
    return line if len(line) <= MAX_REASON else line[: MAX_REASON - 3] + "..."


def busy(what: str) -> Refusal:
    """There is too much work already."""
    return Refusal(503, f"{what}; try again in a second", retry_after=1)
