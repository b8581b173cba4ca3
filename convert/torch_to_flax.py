"""`python -m convert.torch_to_flax ...`: the door to `sam-jax convert from-torch`; `--help` explains it."""

import sys

from sam_jax.cli import convert

if __name__ == "__main__":
    sys.exit(convert.main(["from-torch", *sys.argv[1:]]))
