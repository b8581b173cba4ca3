"""Conversion from and to PyTorch and Hugging Face: the only package that uses torch. Only commands import it."""
