"""`python train.py CONFIG ...`: the door to `sam-jax train`; `--help` explains it."""

import sys
from functools import partial

from sam_jax.cli import train

main = partial(train.main, program="train.py")

if __name__ == "__main__":
    sys.exit(main())
