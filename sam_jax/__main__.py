"""`python -m sam_jax`: the `sam-jax` command."""

import sys

from sam_jax.cli.main import main

sys.exit(main())
