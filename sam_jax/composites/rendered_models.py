"""Images of 3-D models with exact masks of their parts, by ray casting on the CPU.

A part is what one material covers, where it hangs together: the seat of a chair, one of its legs. Photographs have no
such labels, and parts pasted on cut-outs end where the image does not.

Rays are cast by Embree, meshes are read by trimesh: pip install "sam_jax[render]".
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
from typing import Any

import numpy as np
from scipy import ndimage

from sam_jax.composites.scene import MAX_PART_SHARE

SIDE = 320  # pixels of the square that a model fills
_SAMPLES = 2  # rays per pixel along each axis
_FIELD_OF_VIEW = math.radians(30)
_MIN_PART = 60  # pixels
_MIN_EDGE = 10.0  # difference of colour across a part's border, 0 to 255: nothing can be learned from an invisible one
_MAX_FACES = 400_000
_MAX_PARTS = 255


class ModelError(ValueError):
    """A model that cannot be drawn."""


@dataclasses.dataclass(frozen=True, eq=False)
class Rendering:
    """A model as it looks from one side.

    Attributes:
        rgba: (h, w, 4) uint8, cropped to what is visible.
        parts: (h, w) uint8, which part is visible where; 0 for none.
    """

    rgba: np.ndarray
    parts: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class _Surface:
    """A mesh of all materials: vertices (v, 3), normals (v, 3), faces (f, 3), uv (v, 2), and a face's material (f,)."""

    vertices: np.ndarray
    normals: np.ndarray
    faces: np.ndarray
    uv: np.ndarray
    material: np.ndarray
    materials: tuple[Any, ...]


def check_renderer() -> None:
    """Raises ImportError that says what to install if models cannot be drawn."""
    try:
        import trimesh.ray.ray_pyembree  # noqa: F401
    except ImportError as error:
        raise ImportError(f'models are drawn by trimesh and Embree: pip install "sam_jax[render]" ({error})') from error


def render_model(path: str | pathlib.Path, rng: np.random.Generator, rotation: np.ndarray | None = None) -> Rendering:
    """Draws a Wavefront .obj model, with its .mtl and textures beside it, from a random side in random light.

    Args:
        path: the .obj file; y points upwards.
        rng: source of the view and the light.
        rotation: (3, 3), applied to the model first.

    Raises:
        ImportError: trimesh or Embree is not installed.
        ModelError: the file cannot be read, is too large, or nothing of it is visible.
    """
    import trimesh
    from trimesh.ray.ray_pyembree import RayMeshIntersector

    surface = _read(pathlib.Path(path), np.eye(3) if rotation is None else np.asarray(rotation, float))
    # The model's own vertices, not merged: faces keep their numbers.
    caster = RayMeshIntersector(trimesh.Trimesh(surface.vertices, surface.faces, process=False))
    view = _view(rng)
    origins, directions = _rays(view, surface.vertices, SIDE * _SAMPLES)
    face = caster.intersects_first(origins, directions)
    hit = face >= 0
    if hit.mean() < 0.01:
        raise ModelError(f"{path}: hardly anything of it is visible")
    points, weights = _intersections(surface, face[hit], origins[hit], directions[hit])
    colours = _shade(rng, surface, caster, face[hit], points, weights, directions[hit])
    return _compose(surface, face, hit, colours)


def _read(path: pathlib.Path, rotation: np.ndarray) -> _Surface:
    import trimesh

    try:
        scene = trimesh.load_scene(path, group_material=True)
    except Exception as error:  # whatever trimesh's reader stumbles over, in files of many makers
        raise ModelError(f"{path}: {type(error).__name__}: {error}") from error
    meshes = [mesh for mesh in scene.geometry.values() if isinstance(mesh, trimesh.Trimesh) and len(mesh.faces)]
    count = sum(len(mesh.faces) for mesh in meshes)
    if not 0 < count <= _MAX_FACES:
        raise ModelError(f"{path}: {count} faces, of at most {_MAX_FACES}")
    starts = np.cumsum([0, *(len(mesh.vertices) for mesh in meshes)])
    uv = [_texture_places(mesh) for mesh in meshes]
    vertices = np.concatenate([mesh.vertices for mesh in meshes]) @ rotation.T
    middle, extent = (vertices.max(axis=0) + vertices.min(axis=0)) / 2, np.ptp(vertices, axis=0).max()
    return _Surface(
        vertices=(vertices - middle) / max(float(extent), 1e-9),
        normals=np.concatenate([mesh.vertex_normals for mesh in meshes]) @ rotation.T,
        faces=np.concatenate([mesh.faces + start for mesh, start in zip(meshes, starts[:-1], strict=True)]),
        uv=np.concatenate(
            [np.zeros((len(m.vertices), 2)) if c is None else c for m, c in zip(meshes, uv, strict=True)]
        ),
        material=np.repeat(np.arange(len(meshes)), [len(mesh.faces) for mesh in meshes]),
        materials=tuple(getattr(mesh.visual, "material", None) for mesh in meshes),
    )


def _texture_places(mesh: Any) -> np.ndarray:
    """Where in its texture each vertex lies (v, 2), zeros without one."""
    uv = getattr(mesh.visual, "uv", None)
    return np.zeros((len(mesh.vertices), 2)) if uv is None else np.asarray(uv)


def _view(rng: np.random.Generator) -> np.ndarray:
    """The camera's axes (3, 3), rows right, up and backwards: from any side, mostly a little from above."""
    azimuth, elevation = rng.uniform(0, 2 * math.pi), math.radians(rng.uniform(-5, 40))
    back = np.array(
        [math.cos(elevation) * math.sin(azimuth), math.sin(elevation), math.cos(elevation) * math.cos(azimuth)]
    )
    right = np.cross([0.0, 1.0, 0.0], back)
    right /= np.linalg.norm(right)
    return np.stack([right, np.cross(back, right), back])


def _rays(view: np.ndarray, vertices: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Origins and directions (side^2, 3) of rays through a square image that the vertices just fill."""
    seen = vertices @ view.T
    distance = 0.6 / math.tan(_FIELD_OF_VIEW / 2) + seen[:, 2].max()
    plane = seen[:, :2] / (distance - seen[:, 2:])
    middle, half = (plane.max(axis=0) + plane.min(axis=0)) / 2, np.ptp(plane, axis=0).max() / 2 * 1.02
    steps = ((np.arange(side) + 0.5) / side * 2 - 1) * half
    x, y = np.meshgrid(middle[0] + steps, middle[1] - steps)
    directions = np.stack([x, y, -np.ones_like(x)], axis=-1).reshape(-1, 3) @ view
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    return np.broadcast_to(distance * view[2], directions.shape), directions


def _intersections(
    surface: _Surface, face: np.ndarray, origins: np.ndarray, directions: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Where rays meet their faces (n,): points (n, 3) and the weights (n, 3) of the faces' corners."""
    a, b, c = (surface.vertices[surface.faces[face, corner]] for corner in range(3))
    across, along = b - a, c - a
    normal = np.cross(across, along)
    area = np.maximum((normal**2).sum(axis=1), 1e-24)
    facing = (normal * directions).sum(axis=1)
    length = (normal * (a - origins)).sum(axis=1) / np.where(np.abs(facing) < 1e-15, 1e-15, facing)
    points = origins + directions * length[:, None]
    offset = points - a
    second = (np.cross(offset, along) * normal).sum(axis=1) / area
    third = (np.cross(across, offset) * normal).sum(axis=1) / area
    return points, np.clip(np.stack([1 - second - third, second, third], axis=1), 0, 1)


def _shade(
    rng: np.random.Generator,
    surface: _Surface,
    caster: Any,
    face: np.ndarray,
    points: np.ndarray,
    weights: np.ndarray,
    directions: np.ndarray,
) -> np.ndarray:
    """Colours (n, 3) of points, 0 to 255: one lamp that casts shadows, light from the sky, a little gloss."""
    corners = surface.faces[face]
    normals = (surface.normals[corners] * weights[..., None]).sum(axis=1)
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-9)
    normals *= np.where((normals * directions).sum(axis=1) > 0, -1.0, 1.0)[:, None]  # surfaces have two sides
    azimuth, elevation = rng.uniform(0, 2 * math.pi), math.radians(rng.uniform(25, 75))
    lamp = np.array(
        [math.cos(elevation) * math.sin(azimuth), math.sin(elevation), math.cos(elevation) * math.cos(azimuth)]
    )
    lit = ~caster.intersects_any(points + 2e-3 * normals, np.broadcast_to(lamp, points.shape))
    strength = rng.uniform(0.35, 0.8)
    sky = (1.05 - 0.7 * strength) * (0.75 + 0.25 * normals[:, 1])
    direct = strength * np.maximum((normals * lamp).sum(axis=1), 0) * lit
    halfway = lamp - directions
    halfway /= np.maximum(np.linalg.norm(halfway, axis=1, keepdims=True), 1e-9)
    gloss = rng.uniform(0, 60) * lit * np.maximum((normals * halfway).sum(axis=1), 0) ** 30
    colours = _albedo(surface, face, corners, weights) * (sky + direct)[:, None] + gloss[:, None]
    return np.clip(colours, 0, 255)


def _albedo(surface: _Surface, face: np.ndarray, corners: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Colours (n, 3) of the materials themselves, 0 to 255."""
    uv = (surface.uv[corners] * weights[..., None]).sum(axis=1)
    colours = np.full((len(face), 3), 160.0)
    for number, material in enumerate(surface.materials):
        here = surface.material[face] == number
        if not here.any() or material is None:
            continue
        image = getattr(material, "image", None)
        if image is None:
            colours[here] = np.asarray(material.main_color, float)[:3]
            continue
        texture = np.asarray(image.convert("RGB"), float)
        h, w = texture.shape[:2]
        columns = np.floor(uv[here, 0] * w).astype(int) % w
        rows = np.floor((1 - uv[here, 1]) * h).astype(int) % h
        colours[here] = texture[rows, columns]
    return colours


def _compose(surface: _Surface, face: np.ndarray, hit: np.ndarray, colours: np.ndarray) -> Rendering:
    """The image of the rays' colours, with its parts."""
    side = SIDE * _SAMPLES
    blocks = SIDE, _SAMPLES, SIDE, _SAMPLES
    alpha = hit.reshape(blocks).mean(axis=(1, 3))
    flat = np.zeros((side * side, 3))
    flat[hit] = colours
    rgb = flat.reshape(*blocks, 3).mean(axis=(1, 3)) / np.maximum(alpha, 1e-9)[..., None]
    materials = np.zeros(side * side, int)
    materials[hit] = 1 + surface.material[face[hit]]
    seen = np.where(alpha > 0.5, materials.reshape(blocks)[:, 0, :, 0], 0)
    rgba = np.dstack([rgb, 255 * alpha]).round().clip(0, 255).astype(np.uint8)
    rows, columns = np.flatnonzero(alpha.any(axis=1)), np.flatnonzero(alpha.any(axis=0))
    window = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return Rendering(rgba[window], _number_parts(seen[window], rgba[window]))


def _number_parts(materials: np.ndarray, rgba: np.ndarray) -> np.ndarray:
    """Pieces of one material that hang together, largest first: (h, w) uint8.

    Left out are those that are too small, nearly the whole, or end where no edge is seen.
    """
    whole, rgb = np.count_nonzero(materials), rgba[..., :3].astype(float)
    found = []
    for material in np.unique(materials[materials > 0]):
        labels, count = ndimage.label(materials == material)
        for piece in (labels == number for number in range(1, min(count, _MAX_PARTS) + 1)):
            area = np.count_nonzero(piece)
            if _MIN_PART <= area < MAX_PART_SHARE * whole and _edge(piece, materials > 0, rgb) >= _MIN_EDGE:
                found.append((area, piece))
    parts = np.zeros(materials.shape, np.uint8)
    for number, (_, piece) in enumerate(sorted(found, key=lambda one: -one[0])[:_MAX_PARTS], 1):
        parts[piece] = number
    return parts


def _edge(piece: np.ndarray, model: np.ndarray, rgb: np.ndarray) -> float:
    """Mean difference of colour between a piece's rim and what of the model lies around it; of nothing, infinite."""
    inner = piece & ~ndimage.binary_erosion(piece, iterations=2)
    outer = ndimage.binary_dilation(piece, iterations=2) & ~piece & model
    if not outer.any():
        return math.inf
    return float(np.abs(rgb[inner].mean(axis=0) - rgb[outer].mean(axis=0)).mean())
