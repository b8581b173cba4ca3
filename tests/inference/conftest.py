"""A predictor with an image, for all tests of this room."""

import pytest

from sam_jax.inference.predictor import SamPredictor
from sam_jax.models.sam import Sam
from tests.predicting import H, W, make_image
from tests.tiny import TINY


@pytest.fixture(scope="module")
def predictor(variables):
    """With an image that no test takes away."""
    predictor = SamPredictor(Sam(TINY), variables)
    predictor.set_image(make_image(H, W))
    return predictor
