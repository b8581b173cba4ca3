"""`python -m sam_jax.serving ...`: the door to `sam-jax serve`; `--help` explains it."""

import sys

from sam_jax.cli import serve

if __name__ == "__main__":
    sys.exit(serve.main(program="python -m sam_jax.serving"))
