"""The `sam-jax` command: one file per sub-command, each parses and calls. JAX is loaded after parsing."""
