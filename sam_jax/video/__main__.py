"""`python -m sam_jax.video FRAMES ...`: the same as `sam-jax video`; see `--help`."""

import sys

from sam_jax.cli import video

if __name__ == "__main__":
    sys.exit(video.main(program="python -m sam_jax.video"))
