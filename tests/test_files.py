"""Files on disk appear whole or not at all."""

import contextlib
import resource

import pytest
from etils import epath

from sam_jax.files import absolute, write_atomically


def test_absolute_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert absolute("a/../b") == str(tmp_path / "b")
    assert absolute(epath.Path("gs://bucket/a")) == absolute("gs://bucket/a/") == "gs://bucket/a"


def test_write_atomically_leaves_one_whole_file(tmp_path):
    write_atomically(tmp_path / "a.bin", b"first, longer")
    write_atomically(str(tmp_path / "a.bin"), b"second")
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]
    assert (tmp_path / "a.bin").read_bytes() == b"second"


@contextlib.contextmanager
def a_full_disk(limit):
    """Writes past so many bytes of a file fail, after the bytes before have been written."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("there", [True, False])
def test_a_failed_write_leaves_what_was_there(tmp_path, there):
    if there:
        (tmp_path / "a.bin").write_bytes(b"before")
    with a_full_disk(1000), pytest.raises(OSError, match="File too large"):
        write_atomically(tmp_path / "a.bin", bytes(10_000))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == ({"a.bin": b"before"} if there else {})


def test_a_failed_rename_leaves_nothing(tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError, match="taken"):
        write_atomically(tmp_path / "taken", b"content")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
