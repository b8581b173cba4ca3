"""Masks carried through the frames of a video, from prompts on any of them. An honest baseline without learning."""
