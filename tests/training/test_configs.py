"""Every file in configs/ starts for real from what its converter writes, with the sizes of a tiny model."""

import dataclasses
import functools
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from pycocotools import mask as coco

from sam_jax import sharding
from sam_jax.checkpoint import load_config, save_model
from sam_jax.cli import train
from sam_jax.config import MeshConfig, bare_network, sam_config_from_dict, to_dict, vit_tiny
from sam_jax.config.running import NETWORK
from sam_jax.convert import mae_to_flax, torch_to_flax
from sam_jax.convert.flax_to_torch import to_state_dict
from sam_jax.training import loop
from tests.tiny import SMALLEST, random_variables
from tests.tiny_pool import write_pool
from tests.tiny_sa1b import tiny_files, write_tar
from tests.tiny_towers import TINY_CLIP, save_colour_towers

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("configs")


@pytest.fixture(autouse=True)
def one_chip(monkeypatch):
    """Meshes are of one device: more would take longer to compile, and other tests have them."""
    monkeypatch.setattr(sharding, "make_mesh", functools.partial(sharding.make_mesh, devices=jax.devices()[:1]))


@pytest.fixture(scope="module")
def pool(root):
    (root / "pool").mkdir()
    return write_pool(root / "pool")


@pytest.fixture(scope="module")
def sa1b(root):
    (root / "sa1b").mkdir()
    write_tar(root / "sa1b" / "sa_000000.tar", 16)
    return root / "sa1b"


@pytest.fixture(scope="module")
def instances(root):
    """A COCO instances file of the same images."""
    (root / "images").mkdir()
    images, annotations = [], []
    for name, content in tiny_files(24):
        if name.endswith(".jpg"):
            (root / "images" / name).write_bytes(content)
            continue
        record = json.loads(content)
        images.append(record["image"] | {"id": record["image"]["image_id"]})
        annotations += [
            {"id": one["id"], "image_id": images[-1]["id"], "category_id": 1, "iscrowd": 0, "bbox": one["bbox"]}
            | {"segmentation": one["segmentation"], "area": float(coco.area(one["segmentation"]))}
            for one in record["annotations"]
        ]
    (root / "instances.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    return root / "instances.json"


@pytest.fixture(scope="module")
def converted(root):
    """What convert.torch_to_flax writes of a SAM of the smallest size."""
    state = to_state_dict(random_variables(SMALLEST))
    save_model(root / "sam", *torch_to_flax.from_state_dict(state, SMALLEST.mask_decoder.num_heads))
    return root / "sam"


@pytest.fixture(scope="module")
def bundled(root):
    """A model with details, as the bundled one is."""
    config = of_smallest_size(vit_tiny())
    save_model(root / "tiny", config, random_variables(config))
    return root / "tiny"


@pytest.fixture(scope="module")
def encoder(root):
    """What convert.mae_to_flax writes of an MAE of the smallest size."""
    rng, side, width = np.random.default_rng(0), SMALLEST.image_encoder.grid_size, SMALLEST.image_encoder.embed_dim
    shapes = {name: shape for name, (_, shape) in mae_to_flax._sources(SMALLEST).items()}
    shapes |= {"pos_embed": (1, 1 + side * side, width), "cls_token": (1, 1, width)}
    state = {name: 0.1 * rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mae_to_flax, "SIZES", {"smallest": SMALLEST})
        save_model(root / "mae", *mae_to_flax.from_state_dict(state))
    return root / "mae"


def of_smallest_size(sam):
    """The config's own way to run and to answer, its own details and texts, around the smallest network."""
    values, small = to_dict(sam), to_dict(SMALLEST)
    for name in NETWORK - {"details", "text_embed_dim"}:
        *part, leaf = name.split(".")
        theirs, ours = (values[part[0]], small[part[0]]) if part else (values, small)
        if leaf in ours:  # networks of other families have fields of their own
            theirs[leaf] = ours[leaf]
    return sam_config_from_dict(values)


def one_small_step(name, root, init_from, **data):
    """The experiment of a config file, with the sizes of a test and all else as it is."""
    config = train.load_config(str(ROOT / "configs" / name))
    finetune = config.finetune
    if finetune.embedding_cache:
        finetune = dataclasses.replace(finetune, embedding_cache=str(root / "embeddings"))
    sam, text = of_smallest_size(config.sam), config.text
    if text.towers is not None:
        save_colour_towers(root / "towers")
        text = dataclasses.replace(text, towers=str(root / "towers"), cache=str(root / "texts"), min_area=1)
        sam = dataclasses.replace(sam, text_embed_dim=TINY_CLIP.embed_dim)
    stage = dataclasses.replace(
        *config.stages[-1:], image_size=48, batch_size=2, masks_per_image=2, num_steps=1, num_points=None
    )
    return dataclasses.replace(
        config,
        sam=sam,
        text=text,
        stages=(dataclasses.replace(stage, num_examples=None),),
        data=dataclasses.replace(config.data, **data),
        interaction=dataclasses.replace(config.interaction, num_points=0, num_mask_only_steps=0),
        finetune=finetune,
        # One rate for all, so that recipes which then are one program are compiled once.
        optim=dataclasses.replace(config.optim, learning_rate=1e-4),
        mesh=MeshConfig(),
        init_from=init_from and str(init_from),
        workdir=str(root / "runs" / name),
    )


def in_record(workdir):
    return [json.loads(line) for line in (workdir / "log.jsonl").read_text().splitlines()]


SIZES = """
    --sam.image-encoder.image-size 80 --sam.image-encoder.embed-dim 32 --sam.image-encoder.depth 1
    --sam.image-encoder.num-heads 2 --sam.image-encoder.window-size 3 --sam.image-encoder.global-attn-indexes
    --sam.prompt-encoder.mask-in-chans 8 --sam.prompt-embed-dim 32
    --sam.mask-decoder.depth 1 --sam.mask-decoder.num-heads 2 --sam.mask-decoder.mlp-dim 64
    --sam.mask-decoder.iou-head-hidden-dim 24
    --stages.0.image-size 48 --stages.0.batch-size 2 --stages.0.masks-per-image 2 --stages.0.num-steps 1
    --interaction.num-points 0 --interaction.num-mask-only-steps 0 --data.num-workers 0 --mesh.fsdp 1
"""
# Config file: the fixtures with the directory that it starts from and with its data.
STARTS = {
    "bundled.py": (None, "pool"),
    "bundled_self_labels.py": ("bundled", "pool"),
    "decoder_only.py": ("converted", "instances"),
    "finetune_coco.py": ("converted", "instances"),
    "finetune_tiny.py": ("bundled", "instances"),
    "sa1b_vit_b.py": ("encoder", "sa1b"),
    "sa1b_vit_h.py": ("encoder", "sa1b"),
    "sa1b_vit_l.py": ("encoder", "sa1b"),
    "text_to_mask.py": ("encoder", "sa1b"),
}


@pytest.mark.long
def test_every_config_file_is_started_here():
    assert sorted(path.name for path in (ROOT / "configs").glob("*.py")) == sorted(STARTS)


# Started as a user types it, in a process of its own.
COMMANDS = ["finetune_coco.py", "sa1b_vit_b.py"]


# The other files, most of them beside the slow tests.
OTHERS = [
    pytest.param(name, marks=pytest.mark.long if name == "bundled.py" else pytest.mark.slow)
    for name in sorted(STARTS.keys() - set(COMMANDS))
]


@pytest.mark.parametrize("name", OTHERS)
def test_a_config_starts_from_what_its_converter_writes(name, root, request):
    source, images = STARTS[name]
    init_from, path = source and request.getfixturevalue(source), str(request.getfixturevalue(images))
    assert (train.load_config(str(ROOT / "configs" / name)).init_from is None) == (source is None)
    data = {"pool": path} if images == "pool" else {"path": path, "num_workers": 0}
    config = one_small_step(name, root, init_from, **data)
    written = loop.train(config)
    assert np.isfinite(in_record(Path(config.workdir))[-1]["loss"])
    assert load_config(written) == bare_network(config.sam)


@pytest.mark.long
@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_runs_from_converted_weights(name, root, converted, request):
    workdir, images = root / "commands" / name, request.getfixturevalue(STARTS[name][1])
    given = ["--init-from", converted, "--data.path", images, "--workdir", workdir]
    command = [sys.executable, "train.py", f"configs/{name}", *map(str, given), *shlex.split(SIZES)]
    env = dict(os.environ, XLA_FLAGS="", JAX_DISABLE_MOST_OPTIMIZATIONS="1", JAX_PLATFORMS="cpu")
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"model written to {workdir / 'model'}" in done.stdout
    assert load_config(workdir / "model") == SMALLEST
    assert [row["step"] for row in in_record(workdir) if "loss" in row] == [1]


@pytest.mark.long
def test_another_network_is_refused_by_its_differing_fields(root, converted, instances):
    config = one_small_step("finetune_coco.py", root, converted, path=str(instances), num_workers=0)
    encoder = dataclasses.replace(config.sam.image_encoder, num_heads=4, remat=False)
    sam = dataclasses.replace(config.sam, image_encoder=encoder, pixel_mean=(0.0, 0.0, 0.0), crf=True)
    with pytest.raises(ValueError, match="is not the network") as refusal:
        loop.train(dataclasses.replace(config, sam=sam, workdir=str(root / "refused")))
    assert (
        "it has image_encoder.num_heads 2, not 4; pixel_mean (123.675, 116.28, 103.53), not (0.0, 0.0, 0.0); change"
        in (str(refusal.value))
    )
    assert "\n" not in str(refusal.value)
