"""Training images made by pasting cut-outs over photographs, and the pool of cut-outs that they come from."""
