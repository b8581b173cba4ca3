"""SA-1B in tensorflow-datasets' format (`segment_anything`, array_record), read and prepared without TensorFlow."""

from sam_jax.data.tfds.layout import prepared_directory
from sam_jax.data.tfds.reading import TfdsSa1b

__all__ = ["TfdsSa1b", "prepared_directory"]
