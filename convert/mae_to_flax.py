"""`python -m convert.mae_to_flax ...`: the door to `sam-jax convert from-mae`; `--help` explains it."""

import sys

from sam_jax.cli import convert

if __name__ == "__main__":
    sys.exit(convert.main(["from-mae", *sys.argv[1:]]))
