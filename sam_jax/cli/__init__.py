"""The `sam-jax` command: one file per sub-command, which parses and calls. JAX is loaded only after parsing."""
