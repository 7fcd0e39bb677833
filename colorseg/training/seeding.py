"""Randomness that depends on the seed and the epoch alone, so that a resumed run repeats it."""

import random

import numpy as np
import torch
from torch import Tensor


def seed_everything(seed: int, epoch: int = 0) -> None:
    """Seed the generators of Python, NumPy and torch (all devices) for one epoch."""
    words = np.random.SeedSequence((seed, epoch)).generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(words[1])
    torch.manual_seed(int(words[2]))


def batch_order(length: int, seed: int, epoch: int, reshuffle: bool = True) -> Tensor:
    """The order in which an epoch visits the pictures: int64 ``(length,)``, a permutation.

    Without ``reshuffle`` every epoch gets the permutation that ``numpy.random.seed(seed)`` and one
    ``numpy.random.shuffle`` give, as in the course.
    """
    if reshuffle:
        return torch.from_numpy(np.random.default_rng((seed, epoch)).permutation(length))
    return torch.from_numpy(np.random.RandomState(seed).permutation(length))
