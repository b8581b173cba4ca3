"""A job over many images: which, with which prompts, in tiles, and files of results that a restart goes on with."""
