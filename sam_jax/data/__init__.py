"""Training data as `Example`s: plain numpy, no JAX."""
