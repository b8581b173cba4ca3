"""`python -m convert.flax_to_torch ...`: the same as `sam-jax convert to-torch`; see `--help`."""

import sys

from sam_jax.cli import convert

if __name__ == "__main__":
    sys.exit(convert.main(["to-torch", *sys.argv[1:]]))
