"""`python train.py CONFIG ...`: the same as `sam-jax train`; see `--help`."""

import sys
from functools import partial

from sam_jax.cli import train

main = partial(train.main, program="train.py")

if __name__ == "__main__":
    sys.exit(main())
