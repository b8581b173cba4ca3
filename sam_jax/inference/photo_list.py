"""The former place of `sam_jax.batch.image_list`; goes with version 0.3."""

from sam_jax.former_names import moved

__getattr__ = moved(
    __name__,
    "sam_jax.batch.image_list",
    {"find_photos": "find_images", "PhotoList": "ImageList", "Photo": "ImageFile"},
)
