"""The data engine: images in, masks by people and by models out, and models trained on them (SAM paper, section 4)."""
