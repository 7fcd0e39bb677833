"""A picture for the tests of photographs."""

import numpy as np


def noise(height=90, width=130, channels=3):
    values = np.random.RandomState(0).randint(0, 256, (height, width, channels), dtype=np.uint8)
    return values if channels > 1 else values[..., 0]
