"""The former place of `sam_jax.batch.stream`; goes with version 0.3."""

from sam_jax.former_names import moved

__getattr__ = moved(
    __name__,
    "sam_jax.batch.stream",
    {"segment_photos": "segment_images", "PhotoResult": "ImageResult", "Hooks": "Hooks", "Timings": "Timings"},
)
