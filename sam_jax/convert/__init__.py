"""The border to PyTorch and Hugging Face: the only room that speaks torch. Commands alone import it."""
