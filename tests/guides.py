"""The code blocks of the guides in docs/, and a place to run them in."""

import re
from pathlib import Path

import jax

ROOT = Path(__file__).parents[1]


def blocks(page, language="python"):
    """The code blocks of docs/PAGE in a language."""
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL)


def commands(page):
    """The lines of its bash blocks."""
    return [line for block in blocks(page, "bash") for line in block.splitlines()]


def enter_like_the_root(folder, monkeypatch):
    """Makes `folder` look like the repository's root, where things may be written, and goes there."""
    (folder / "docs").symlink_to(ROOT / "docs")
    monkeypatch.chdir(folder)
    one = jax.local_devices()[:1]
    monkeypatch.setattr(jax, "local_devices", lambda: one)  # each device compiles for itself, which takes time
