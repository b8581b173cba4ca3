"""`python -m convert.torch_to_flax ...`: the same as `sam-jax convert from-torch`; see `--help`."""

import sys

from sam_jax.cli import convert

if __name__ == "__main__":
    sys.exit(convert.main(["from-torch", *sys.argv[1:]]))
