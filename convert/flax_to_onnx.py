"""`python -m convert.flax_to_onnx ...`: the door to `sam-jax convert to-onnx`; `--help` explains it."""

import sys

from sam_jax.cli import convert

if __name__ == "__main__":
    sys.exit(convert.main(["to-onnx", *sys.argv[1:]]))
