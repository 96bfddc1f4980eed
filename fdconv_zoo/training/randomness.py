"""Seeds that depend only on the run's seed and the step, so that a resumed run draws the same random numbers."""

import random

import numpy as np
import torch


def derive_seed(*entropy: int) -> int:
    """Combine several numbers into one 32-bit seed."""
    return int(np.random.SeedSequence(entropy).generate_state(1)[0])


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed Python, NumPy and torch for one forward and backward pass (mixup, dropout, stochastic depth).

    Args:
        seed: The run's seed.
        step: Number of the pass since the start of the run.
        rank: Rank of the process; each process draws different numbers.
    """
    state = derive_seed(seed, step, rank)
    random.seed(state)
    np.random.seed(state)  # noqa: NPY002 - timm's Mixup draws from NumPy's global generator
    torch.manual_seed(state)
