"""Text prompts: CLIP's and SigLIP 2's towers, their tokenizers, and masks of what phrases name."""
