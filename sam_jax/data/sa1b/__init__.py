"""SA-1B and data sets in its layout: images with a JSON of RLE masks each, in tars or in a folder.

`sam-jax data index|check|stats PATH` prepares, verifies and describes a data set.
"""

from sam_jax.data.sa1b.folder import Sa1bFolder
from sam_jax.data.sa1b.opening import open_sa1b
from sam_jax.data.sa1b.pairs import Sa1bPairs
from sam_jax.data.sa1b.tars import Sa1bTars

__all__ = ["Sa1bFolder", "Sa1bPairs", "Sa1bTars", "open_sa1b"]
