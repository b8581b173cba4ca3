"""`python infer.py IMAGES ...`: the same as `sam-jax infer`; see `--help`."""

import sys
from functools import partial

from sam_jax.cli import infer

main = partial(infer.main, program="infer.py")

if __name__ == "__main__":
    sys.exit(main())
