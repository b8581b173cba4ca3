"""What pages that need no other file are made of: tables, for the terminal as well, figures, the page around them."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape

import numpy as np
from PIL import Image

_QUALITY = 82
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1180px; margin: 2em auto; padding: 0 1em; }
svg text { font: 12px system-ui, sans-serif; fill: #333; }
table { border-collapse: collapse; margin: 0.6em 0 1.6em; display: block; overflow-x: auto; }
th, td { padding: 0.25em 0.8em; text-align: right; border-bottom: 1px solid #e2e2e2; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
td small { color: #777; }
.row { display: flex; flex-wrap: wrap; gap: 1.5em; }
figure { margin: 0 0 1em; max-width: 400px; }
figure.wide { max-width: 100%; }
figcaption { font-size: 13px; color: #444; overflow-wrap: anywhere; }
"""


def whole_page(title: str, heading: str, parts: Iterable[str]) -> str:
    """A page of HTML parts; title and heading are plain text."""
    return "\n".join(
        [
            f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>',
            f"<style>{_STYLE}</style></head><body><h1>{escape(heading)}</h1>",
            *parts,
            "</body></html>",
        ]
    )


def text_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows for a terminal, the header among them; the first column to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def html_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The same as HTML; what follows " ±" is small."""

    def cell(text: str) -> str:
        value, sign, spread = escape(text).partition(" ±")
        return f"<td>{value}{f' <small>±{spread}</small>' if sign else ''}</td>"

    head = "".join(f"<th>{escape(text)}</th>" for text in header)
    body = "".join(f"<tr>{''.join(map(cell, row))}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def image_figure(image: np.ndarray, caption: str) -> str:
    """A wide figure of an image (H, W, 3) uint8, with a plain caption."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=_QUALITY)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    source = f"data:image/jpeg;base64,{data}"
    return (
        f'<figure class="wide"><img src="{source}" alt="{escape(caption)}" style="max-width: 100%">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )
