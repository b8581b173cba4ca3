"""Estimates of what a step will cost, from programs compiled for a TPU; nothing runs."""
