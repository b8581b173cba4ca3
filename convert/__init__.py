"""The border of the house: everything that speaks PyTorch or Hugging Face. Nothing in `sam_jax` imports it."""
