"""What the tutorial, the answers and the pages on other packages say can be run, runs."""

import re
import shlex

import numpy as np
import pytest

from sam_jax.cli import main
from sam_jax.config import ImageEncoderConfig, SamConfig
from tests.guides import ROOT, blocks, commands


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """A directory that looks like the repository's root, where things may be written."""
    for name in ("docs", "tests"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(code, names):
    exec(compile(code, "docs", "exec"), names)


@pytest.mark.long
def test_the_tutorial_in_python(here):
    import matplotlib as mpl

    mpl.use("Agg")
    names = {}
    for block in blocks("tutorial.md"):
        run(block, names)
    assert names["masks"].shape[0] == 3
    assert names["better"].masks.shape[0] == 1
    assert (here / "dog.png").stat().st_size > 10_000
    mpl.pyplot.close("all")


@pytest.mark.long
@pytest.mark.parametrize("line", commands("tutorial.md"))
def test_the_tutorial_on_the_command_line(line, here, capsys):
    words = shlex.split(line)
    assert words[0] == "sam-jax"
    assert main.main(words[1:]) == 0, capsys.readouterr().out
    out = here / (words[words.index("--out") + 1] if "--out" in words else "sam_out")
    assert list(out.iterdir())


@pytest.mark.long
@pytest.mark.parametrize("block", blocks("faq.md"))
def test_answers(block, capsys):
    run(block, {})
    printed = capsys.readouterr().out
    assert printed
    if "logits" in block:  # a mask prompt made of a mask is understood
        assert float(printed) > 0.5


@pytest.mark.oracle
def test_onnx(here):
    """The files of the bundled model, and what is done with them there, beside the predictor."""
    import sam_jax

    (line,) = (line for line in commands("onnx.md") if line.startswith("sam-jax"))
    assert main.main(shlex.split(line)[1:]) == 0
    (block,) = blocks("onnx.md")
    names = {}
    run(block, names)
    predictor = sam_jax.SamPredictor(*sam_jax.load_model())
    predictor.set_image(sam_jax.read_image("docs/images/dog.jpg"))
    expected = predictor.predict(np.array([[275, 149]]), np.array([1]))
    same = names["best"] == expected.masks[expected.iou_predictions.argmax()]
    assert same.mean() > 0.999
    assert names["best"].sum() > 1000


@pytest.mark.long
def test_serving(here, capsys):
    import sam_jax
    from sam_jax.config import ServingConfig
    from tests.serving.running import running

    with running(*sam_jax.load_model(), ServingConfig(port=0)) as server:
        names = {}
        for block in blocks("serving.md"):
            run(block.replace("http://127.0.0.1:8000", server.url), names)
        names["server"].close()
    assert names["image"]["size"] == [341, 512]
    assert len(names["answer"]["objects"]) == 2
    assert len(names["data"]["masks"]) > 0
    assert "'total': 64" in capsys.readouterr().out


def test_links_between_pages_and_headings():
    """Also of headings, for those who read the files where they lie."""
    pages = {path.name: path.read_text() for path in (ROOT / "docs").glob("*.md")}
    slug = lambda title: re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-")  # noqa: E731
    headings = {name: {slug(title) for title in re.findall(r"^#+ (.*)", text, re.M)} for name, text in pages.items()}
    found = [
        f"{name}: {target}#{heading}"
        for name, text in pages.items()
        for target, heading in re.findall(r"\]\((\w*\.?m?d?)#([\w-]+)\)", text)
        if heading not in headings[target or name]
    ]
    assert found == []


def of_package(name):
    return "".join(block for block in blocks("migrating.md") if block.startswith(f"# {name}\n"))


# A frame in which docs/images/dog.jpg is shrunk as the published sizes shrink it.
SMALL = SamConfig(
    image_encoder=ImageEncoderConfig(
        image_size=256, embed_dim=128, depth=2, num_heads=2, window_size=7, global_attn_indexes=(1,)
    )
)


@pytest.mark.parametrize(("package", "name"), [("segment_anything", "sam_vit_b"), ("transformers", "sam_vit_base")])
def test_ours_runs(package, name, here, checkpoint):
    (here / "checkpoints").mkdir()
    (here / "checkpoints" / name).symlink_to(checkpoint)
    names = {}
    run(of_package("shared") + of_package(f"sam_jax for {package}"), names)
    assert names["masks"].shape == (3, *names["image"].shape[:2])


def test_every_block_says_whose_it_is():
    known = ("shared", "segment_anything", "transformers", "sam_jax for segment_anything", "sam_jax for transformers")
    firsts = [block.splitlines()[0] for block in blocks("migrating.md")]
    assert set(firsts) == {f"# {name}" for name in known}


@pytest.mark.oracle
def test_the_official_code_gives_the_same(here, monkeypatch):
    import torch

    from tests.oracle import build_official

    official = build_official(SMALL)
    torch.save(official.state_dict(), "sam_vit_b_01ec64.pth")
    import segment_anything

    monkeypatch.setitem(segment_anything.sam_model_registry, "vit_b", lambda checkpoint: official)
    assert main.main(shlex.split(blocks("migrating.md", "text")[0])[1:]) == 0
    theirs, ours = {}, {}
    run(of_package("shared") + of_package("segment_anything"), theirs)
    run(of_package("shared") + of_package("sam_jax for segment_anything"), ours)
    assert ours["masks"].shape == theirs["masks"].shape
    assert (ours["masks"] == theirs["masks"]).mean() > 0.999
    np.testing.assert_allclose(ours["scores"], theirs["scores"], atol=1e-3)
    assert len(ours["records"]) == len(theirs["records"]) > 0


@pytest.mark.oracle
def test_transformers_gives_the_same(here, monkeypatch):
    import transformers

    from tests.golden.make_key_lists import build_hugging_face
    from tests.oracle import randomise

    model, side = build_hugging_face(SMALL), SMALL.image_size
    randomise(model, seed=1)
    model.save_pretrained("sam-vit-base")
    frame = {"size": {"longest_edge": side}, "pad_size": {"height": side, "width": side}}
    processor = transformers.SamProcessor(transformers.SamImageProcessor(**frame))
    monkeypatch.setattr(transformers.SamModel, "from_pretrained", lambda name: model)
    monkeypatch.setattr(transformers.SamProcessor, "from_pretrained", lambda name: processor)
    source = "sam-vit-base/model.safetensors"
    assert main.main(["convert", "from-torch", source, "checkpoints/sam_vit_base"]) == 0
    theirs, ours = {}, {}
    run(of_package("shared") + of_package("transformers"), theirs)
    run(of_package("shared") + of_package("sam_jax for transformers"), ours)
    assert (ours["masks"] == theirs["masks"]).mean() > 0.999
    np.testing.assert_allclose(ours["scores"], theirs["scores"], atol=1e-3)
