"""Labelled sets to measure on: any labelled folder or file, and the layouts of published data sets."""
