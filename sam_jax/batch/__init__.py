"""A job over many images: image lists, prompt files, tiles, and result files from which a restart continues."""
