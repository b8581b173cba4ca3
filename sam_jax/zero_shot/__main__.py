"""`python -m sam_jax.zero_shot`: the same as `sam-jax zero-shot`."""

import sys

from sam_jax.cli.zero_shot import main

sys.exit(main())
