"""SA-1B in miniature, for all tests of this room."""

import pytest

from tests.sa1b_pairs import files_of, write_folder, write_tar


@pytest.fixture
def tars(tmp_path):
    write_tar(tmp_path / "sa_000000.tar", files_of([1, 2, 30]))
    write_tar(tmp_path / "sa_000001.tar", files_of([4, 5], h=70, w=50))
    return tmp_path


@pytest.fixture
def folder(tmp_path):
    write_folder(tmp_path / "folder", files_of([1, 2, 30]))
    return tmp_path / "folder"
