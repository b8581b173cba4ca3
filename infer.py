"""`python infer.py IMAGES ...`: the door to `sam-jax infer`; `--help` explains it."""

import sys
from functools import partial

from sam_jax.cli import infer

main = partial(infer.main, program="infer.py")

if __name__ == "__main__":
    sys.exit(main())
