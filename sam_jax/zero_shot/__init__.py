"""What the SAM paper does with a model that was never trained for it: edges, object proposals, instances.

`sam-jax zero-shot edges|proposals|instances` runs each, and scores it where there is a ground truth.
"""
