"""The HTTP server: images and prompts in, masks out. docs/serving.md is for those who call it."""
