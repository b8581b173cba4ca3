"""`python -m convert.clip_to_flax ...`: the door to `sam-jax convert from-clip`; `--help` explains it."""

import sys

from sam_jax.cli import convert

if __name__ == "__main__":
    sys.exit(convert.main(["from-clip", *sys.argv[1:]]))
