"""What the weighted objectives have in common: z-scores over the targets that are there."""

from torch import Tensor

LEAST_DEVIATION = 1e-8
"""Scores that differ by less are equal: their z-scores are 0, not rounding errors blown up."""


def z_scores(scores: Tensor) -> Tensor:
    """How many standard deviations (of the population) each score is above the mean, in float64: [N] to [N].

    In float64 because a step has millions of targets, and the order in which they lie must not matter.
    """
    wide = scores.detach().double()
    if not wide.numel():
        return wide
    centred = wide - wide.mean()
    return centred / centred.square().mean().sqrt().clamp(min=LEAST_DEVIATION)
