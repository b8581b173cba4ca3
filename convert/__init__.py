"""Doors to `sam-jax convert`; the converters are in `sam_jax.convert`."""
