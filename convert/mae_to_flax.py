"""`python -m convert.mae_to_flax ...`: the same as `sam-jax convert from-mae`; see `--help`."""

import sys

from sam_jax.cli import convert

if __name__ == "__main__":
    sys.exit(convert.main(["from-mae", *sys.argv[1:]]))
