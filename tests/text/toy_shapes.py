"""Coloured shapes with names: images, COCO files, and a tiny CLIP that has learnt to tell them apart."""

import json
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import optax
from PIL import Image, ImageDraw

from sam_jax.config import TextTowerConfig, TowersConfig, VisionTowerConfig
from sam_jax.ops.rle import encode_mask
from sam_jax.text.crops import crop_mask
from sam_jax.text.loading import load_towers, save_towers
from sam_jax.text.towers import Towers, init_towers
from tests.tiny_towers import WORDS, tokenizer_json

SIDE = 96
DOT = "a yellow dot"
COLOURS = {"red": (220, 40, 40), "green": (40, 180, 60), "blue": (50, 70, 220)}
YELLOW = (240, 220, 60)
SHAPES = ("square", "circle", "triangle")
NAMES = [*(f"a {colour} {shape}" for colour, shape in product(COLOURS, SHAPES)), DOT]
CLIP = TowersConfig(
    vision=VisionTowerConfig(image_size=24, patch_size=8, width=48, depth=2, num_heads=2, mlp_dim=96),
    text=TextTowerConfig(len(WORDS) + 4, 6, 32, 1, 2, 64),
    embed_dim=24,
)


def draw_scene(rng, pair=False, count=3):
    """An image (SIDE, SIDE, 3) and its objects [(name, mask)]: shapes of unlike names, or the first two of one name.

    Shapes lie apart. Each has a dot in it, which is an object itself: what a click on it means is ambiguous.
    """
    image = Image.new("RGB", (SIDE, SIDE), tuple(int(v) for v in rng.integers(90, 170, 3)))
    draw, cells = ImageDraw.Draw(image), rng.permutation(4)[:count]
    names = [NAMES[i] for i in rng.permutation(len(NAMES) - 1)[:count]]
    if pair:
        names[1] = names[0]
    objects, dots = [], []
    for cell, name in zip(cells, names, strict=True):
        side = int(rng.integers(36, 46))
        x, y = (int(c) * SIDE // 2 + int(rng.integers(0, SIDE // 2 - side)) for c in (cell % 2, cell // 2))
        objects.append((name, _shape(draw, name, (x, y, x + side - 1, y + side - 1))))
        x, y = x + side // 2, y + side * 3 // 5
        dots.append((DOT, _shape(draw, DOT, (x - 8, y - 8, x + 8, y + 8))))
    return np.asarray(image), objects + dots


def _shape(draw, name, box):
    """Draws a shape and gives its mask."""
    _, colour, shape = name.split()
    mask = Image.new("1", (SIDE, SIDE))
    for canvas, fill in ((draw, COLOURS.get(colour, YELLOW)), (ImageDraw.Draw(mask), 1)):
        x0, y0, x1, y1 = box
        if shape == "square":
            canvas.rectangle(box, fill=fill)
        elif shape in ("circle", "dot"):
            canvas.ellipse(box, fill=fill)
        else:
            canvas.polygon([((x0 + x1) // 2, y0), (x1, y1), (x0, y1)], fill=fill)
    return np.asarray(mask)


def write_coco(folder, scenes):
    """A COCO file of scenes, with their names as categories; returns its path."""
    (folder / "images").mkdir(parents=True)
    images, annotations = [], []
    for number, (image, objects) in enumerate(scenes):
        Image.fromarray(image).save(folder / "images" / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": SIDE, "width": SIDE})
        for name, mask in objects:
            entry = {"image_id": number, "category_id": NAMES.index(name), "segmentation": encode_mask(mask)}
            annotations.append({"id": len(annotations), **entry, "iscrowd": 0})
    categories = [{"id": i, "name": name} for i, name in enumerate(NAMES)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "instances.json").write_text(json.dumps(content))
    return folder / "instances.json"


def train_clip(path, steps=300, seed=0):
    """A tiny CLIP, trained to match crops of shapes with their names, as a directory of towers."""
    module, rng = Towers(CLIP), np.random.default_rng(seed)
    save_towers(path.with_name("fresh"), CLIP, init_towers(CLIP, jax.random.key(seed)), tokenizer_json(CLIP))
    fresh = load_towers(path.with_name("fresh"))
    tokens = jnp.asarray(fresh.tokenizer(NAMES))
    crops, labels = [], []
    while len(crops) < 1200:
        image, objects = draw_scene(rng)
        for name, mask in objects:
            crops.append(crop_mask(CLIP, image, mask, rng.uniform(1, 2), rng.uniform() < 0.5))
            labels.append(NAMES.index(name))
    mean, deviation = np.array(CLIP.pixel_mean), np.array(CLIP.pixel_std)
    pixels = ((np.stack([crop.pixels for crop in crops]) - mean) / deviation).astype(np.float32)
    inside, labels = np.stack([crop.tokens_inside for crop in crops]), np.array(labels)
    optimizer = optax.adam(optax.cosine_decay_schedule(2e-3, steps))

    def loss_of(variables, pixels, inside, labels):
        images = module.apply(variables, pixels, inside, method="embed_images")
        texts = module.apply(variables, tokens, method="embed_tokens")
        return optax.softmax_cross_entropy_with_integer_labels(10 * images @ texts.T, labels).mean()

    @jax.jit
    def step(variables, state, *batch):
        loss, gradients = jax.value_and_grad(loss_of)(variables, *batch)
        updates, state = optimizer.update(gradients, state)
        return optax.apply_updates(variables, updates), state, loss

    variables, state = fresh.variables, optimizer.init(fresh.variables)
    for _ in range(steps):
        rows = rng.integers(0, len(labels), 64)
        variables, state, loss = step(variables, state, pixels[rows], inside[rows], labels[rows])
    save_towers(path, CLIP, jax.tree.map(np.asarray, variables), tokenizer_json(CLIP))
    return float(loss)
