"""Scripts for `sam-jax convert`; the converters are in `sam_jax.convert`."""
