"""One word for one thing: an image is an image, everywhere but where a photograph is meant as opposed to a drawing."""

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Composites are pasted over photographs; former names still work, and say so; what was is told as it was called.
MEANT = re.compile(r"(?i:photograph)|photo_(cutout|region|wallpapers|stamps)|sky_photos|picture_every")
ROOMS_OF_PHOTOGRAPHS = ("sam_jax/composites/", "tests/composites/", "sam_jax/inference/photo_list.py")
PLACES = {
    "sam_jax/inference/batch.py": "former names",
    "sam_jax/cli/data.py": "--photos of a pool",
    "sam_jax/config/text.py": "captions that CLIP was trained on",
    "docs/text.md": "the same",
    "tests/text/test_tokenizers.py": "the same",
    "README.md": "the same",
    "docs/model_card.md": "the same",
    "tests/test_import.py": "former names",
    "tests/test_words.py": "this",
    "CHANGELOG.md": "what was",
}
SUFFIXES = (".py", ".md", ".toml", ".cff", ".ipynb")


def tracked():
    """The files of the repository that people read."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    names = listed.stdout.split() if listed.returncode == 0 else [str(p.relative_to(ROOT)) for p in ROOT.rglob("*.*")]
    return [name for name in names if name.endswith(SUFFIXES) and (ROOT / name).is_file()]


def test_an_image_is_an_image():
    found = []
    for name in tracked():
        if name in PLACES or name.startswith(ROOMS_OF_PHOTOGRAPHS):
            continue
        for number, line in enumerate((ROOT / name).read_text().splitlines(), 1):
            if re.search("photo|picture", MEANT.sub("", line), re.IGNORECASE):
                found.append(f"{name}:{number}: {line.strip()}")
    assert found == []


def test_pictures_are_nowhere():
    places = ("CHANGELOG.md", "tests/test_words.py", "tests/test_import.py", "sam_jax/training/same_run.py")
    places += ("tests/training/test_same_run.py",)
    assert [name for name in tracked() if name not in places and "picture" in (ROOT / name).read_text().lower()] == []
