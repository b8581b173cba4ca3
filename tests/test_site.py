"""The documentation as a site: every page is built, every link leads somewhere, every public name has its place."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import sam_jax

ROOT = Path(__file__).parents[1]
NAVIGATION = (ROOT / "mkdocs.yml").read_text()


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", out],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return out


def test_every_page_is_in_the_navigation():
    pages = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    assert set(re.findall(r"\S+\.md", NAVIGATION)) == pages


def test_the_readme_names_the_pages_of_the_site():
    named = set(re.findall(r"docs/(\w+\.md)", (ROOT / "README.md").read_text()))
    assert {path.name for path in (ROOT / "docs").glob("*.md")} - named == {"index.md"}


@pytest.mark.long
def test_it_is_built_without_a_warning(site):
    assert (site / "index.html").exists()
    assert (site / "faq/index.html").exists()


@pytest.mark.long
def test_every_public_name_is_in_the_reference(site):
    page = (site / "reference/sam_jax/index.html").read_text()
    assert [name for name in sam_jax.__all__ if f'id="sam_jax.{name}"' not in page] == []


@pytest.mark.long
def test_docstrings_become_tables(site):
    """Sections of Google's style, with our two spaces."""
    page = (site / "reference/sam_jax/index.html").read_text()
    predict = page.split('id="sam_jax.SamPredictor.predict"', 1)[1].split('id="sam_jax.SamPredictor.predict_many"')[0]
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", predict))
    for part in ("Parameters:", "multimask_output", "True returns three masks", "Raises:", "no image is set"):
        assert part in text
    assert "Args:" not in page
