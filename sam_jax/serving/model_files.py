"""The model as ONNX files, made once by `sam-jax convert to-onnx` in a process of its own, and kept in a cache."""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from etils import epath

from sam_jax import __version__
from sam_jax.checkpoint import model_path
from sam_jax.serving.refusals import Refusal

FILES = ("decoder.onnx", "encoder.onnx")
READY, MAKING, ABSENT = "ready", "being made", "not available"
_PACKAGES = ("jax2onnx", "onnx", "onnxruntime")
_LOG = logging.getLogger(__name__)


class ModelFiles:
    """The files of one model. Starting makes them if they are not in the cache; nobody waits for it."""

    def __init__(self, checkpoint: str | None, crf: bool, cache: Path | None = None) -> None:
        """`crf`: whether the model refines edges; `cache`: a directory, None is the user's own."""
        self._source = model_path(checkpoint)
        self._crf = crf
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sam_jax" / "onnx"
        self._directory = (cache or root) / self._key()
        self._process: subprocess.Popen[str] | None = None
        self._thread = threading.Thread(target=self._make, name="onnx", daemon=True)
        self._stopped = False

    def start(self) -> None:
        """Begins to make the files, where they are missing and the extra is installed."""
        if self.state() != READY and self._missing() is None:
            self._thread.start()

    def stop(self) -> None:
        """Ends an unfinished making."""
        self._stopped = True
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
        if self._thread.ident is not None:
            self._thread.join()

    def state(self) -> str:
        """READY, MAKING or ABSENT."""
        if all((self._directory / name).exists() for name in FILES):
            return READY
        return MAKING if self._thread.is_alive() else ABSENT

    def path(self, name: str) -> Path:
        """The file of one of FILES. Raises Refusal (404, 503) where it is not there (yet)."""
        if name not in FILES:
            raise Refusal(404, f"there is no such file; there are {' and '.join(FILES)}")
        state = self.state()
        if state == MAKING:
            raise Refusal(503, "the file is being made; come again", retry_after=10)
        if state == ABSENT:
            package = self._missing()
            why = f"{package} is not installed there: pip install 'sam_jax[onnx]'" if package else "its log says why"
            raise Refusal(404, f"the server has no ONNX files ({why})")
        return self._directory / name

    def _missing(self) -> str | None:
        return next((name for name in _PACKAGES if importlib.util.find_spec(name) is None), None)

    def _key(self) -> str:
        """Another model, another version of the library, or another form of the files, has another key."""
        facts = sorted((str(path), path.stat().length, path.stat().mtime) for path in _files(self._source))
        return hashlib.sha256(repr((__version__, self._crf, "low_res_only", facts)).encode()).hexdigest()[:24]

    def _make(self) -> None:
        self._directory.parent.mkdir(parents=True, exist_ok=True)
        refine = "--crf" if self._crf else "--no-crf"
        command = [sys.executable, "-m", "sam_jax", "convert", "to-onnx"]
        command += [str(self._source), str(self._directory), refine, "--low-res-only"]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        _, errors = self._process.communicate()
        if self._process.returncode and not self._stopped:
            last = errors.strip().splitlines()[-1:] or ["no reason given"]
            _LOG.error("the ONNX files could not be made: %s", last[0])


def _files(directory: epath.Path) -> Iterator[epath.Path]:
    """All files below a directory. epath's `rglob` is only for some kinds of paths, in some versions."""
    for path in directory.iterdir():
        if path.is_dir():
            yield from _files(path)
        else:
            yield path
