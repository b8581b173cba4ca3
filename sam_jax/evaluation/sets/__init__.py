"""Labelled sets for evaluation: any labelled directory or file, and the layouts of published data sets."""
