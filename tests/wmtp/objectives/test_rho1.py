"""Rho-1's weights by hand, and against a slow implementation that anyone can follow."""

import math
from decimal import ROUND_CEILING, Decimal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from wmtp.objectives.rho1 import excess_loss, kept_count, kept_weights, softmax_weights

Case = tuple[Tensor, Tensor]


def test_the_score_is_signed_and_without_gradient() -> None:
    own = torch.tensor([[[2.0, 0.5]]], requires_grad=True)
    score = excess_loss(own, torch.tensor([[[1.5, 1.5]]]))
    assert score.tolist() == [[[0.5, -1.0]]]
    assert not score.requires_grad


def test_weights_by_hand() -> None:
    """Scores 1 and 3 have z-scores −1 and 1; with temperature 1 their chances are 1 to e²."""
    scores = torch.tensor([[[1.0, 9.0], [3.0, 9.0]]])
    valid = torch.tensor([[[True, False], [True, False]]])
    weights = softmax_weights(scores, valid, temperature=1.0, clip=(0.0, 9.0))
    low = 2 / (1 + math.exp(2))
    torch.testing.assert_close(weights, torch.tensor([[[low, 0.0], [2 - low, 0.0]]]))


def test_clipped_weights_by_hand() -> None:
    """Chances 1 to e², scaled to 0.238 and 1.762, clipped to 0.5 and 1.5, mean 1 already."""
    scores, valid = torch.tensor([[[1.0], [3.0]]]), torch.ones(1, 2, 1, dtype=torch.bool)
    clipped = softmax_weights(scores, valid, temperature=1.0, clip=(0.5, 1.5))
    torch.testing.assert_close(clipped, torch.tensor([[[0.5], [1.5]]]))
    high = softmax_weights(scores, valid, temperature=1.0, clip=(1.0, 1.5))
    torch.testing.assert_close(high, torch.tensor([[[0.8], [1.2]]]))


def test_one_that_stands_out_is_clipped_before_the_second_scaling() -> None:
    scores = torch.zeros(1, 100, 1)
    scores[0, 7] = 50.0
    weights = softmax_weights(scores, torch.ones_like(scores, dtype=torch.bool))
    assert (weights[0, 7] / weights[0, 0]).item() == pytest.approx(3 / 0.05)
    assert weights.mean().item() == pytest.approx(1.0)


def test_kept_by_hand() -> None:
    scores = torch.tensor([[[5.0, 1.0], [9.0, 2.0]], [[3.0, 0.0], [4.0, 0.0]]])
    valid = torch.tensor([[[True, True], [False, True]], [[True, True], [True, False]]])
    weights = kept_weights(scores, valid, keep_ratio=0.5)  # three of six: 5, 4, 3
    assert weights.tolist() == [[[1.0, 0.0], [0.0, 0.0]], [[1.0, 0.0], [1.0, 0.0]]]


def test_of_equal_scores_the_earlier_are_kept() -> None:
    scores = torch.zeros(2, 3, 2)
    scores[1, 2, 1] = 1.0
    weights = kept_weights(scores, torch.ones_like(scores, dtype=torch.bool), keep_ratio=0.5)
    assert weights.flatten().tolist() == [1.0] * 5 + [0.0] * 6 + [1.0]


@pytest.mark.parametrize(
    ("targets", "ratio", "kept"),
    [(10, 0.7, 7), (1, 0.7, 1), (0, 0.7, 0), (11, 0.7, 8), (90, 0.7, 63), (100, 0.55, 55), (7, 1.0, 7)],
)
def test_the_count_is_that_of_decimal_arithmetic(targets: int, ratio: float, kept: int) -> None:
    assert kept_count(targets, ratio) == kept


@given(targets=st.integers(0, 10_000), hundredths=st.integers(1, 100))
def test_the_count_is_exact(targets: int, hundredths: int) -> None:
    exact = Decimal(hundredths) / 100 * targets
    assert kept_count(targets, hundredths / 100) == int(exact.to_integral_value(ROUND_CEILING))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Scores [B, S, H] with many ties, and where they are valid."""
    shape = draw(st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 3)))
    size = math.prod(shape)
    score = st.sampled_from([-3.0, -0.5, 0.0, 0.5, 2.0]) | st.floats(-10, 10, width=32)
    scores = draw(st.lists(score, min_size=size, max_size=size))
    valid = draw(st.lists(st.booleans(), min_size=size, max_size=size))
    return torch.tensor(scores).view(shape), torch.tensor(valid).view(shape)


def slow_weights(
    case: Case, temperature: float = 0.7, clip: tuple[float, float] = (0.05, 3.0)
) -> list[float]:
    scores = [s for s, v in zip(case[0].flatten().tolist(), case[1].flatten().tolist(), strict=True) if v]
    if not scores:
        return []
    mean = sum(scores) / len(scores)
    deviation = math.sqrt(sum((s - mean) ** 2 for s in scores) / len(scores))
    z = [0.0 if deviation < 1e-8 else (s - mean) / deviation for s in scores]
    powers = [math.exp(one / temperature) for one in z]
    weights = [len(scores) * one / sum(powers) for one in powers]
    weights = [min(max(one, clip[0]), clip[1]) for one in weights]
    again = sum(weights) / len(weights)
    return [one / again for one in weights]


def slow_kept(case: Case, ratio: float) -> list[float]:
    """Take the best, one after the other; the first of equals."""
    left = [
        (s, at)
        for at, (s, v) in enumerate(zip(*(part.flatten().tolist() for part in case), strict=True))
        if v
    ]
    kept = [0.0] * case[0].numel()
    for _ in range(math.ceil(Decimal(str(ratio)) * len(left))):
        best = max(left, key=lambda pair: (pair[0], -pair[1]))
        left.remove(best)
        kept[best[1]] = 1.0
    return kept


@given(cases())
def test_weights_are_those_of_the_slow_implementation(case: Case) -> None:
    scores, valid = case
    weights = softmax_weights(scores, valid)
    assert weights[valid].tolist() == pytest.approx(slow_weights(case), rel=1e-5)
    assert (weights[~valid] == 0).all()
    if valid.any():
        assert weights[valid].mean().item() == pytest.approx(1.0, abs=1e-6)


@given(cases(), st.sampled_from([0.1, 0.5, 0.7, 0.95, 1.0]))
def test_kept_are_those_of_the_slow_implementation(case: Case, ratio: float) -> None:
    weights = kept_weights(*case, keep_ratio=ratio)
    assert weights.flatten().tolist() == slow_kept(case, ratio)
    assert weights.sum().item() == kept_count(int(case[1].sum()), ratio)


@given(cases(), st.integers(0, 2**32 - 1))
def test_weights_do_not_depend_on_the_order_of_samples(case: Case, seed: int) -> None:
    scores, valid = case
    order = torch.randperm(len(scores), generator=torch.Generator().manual_seed(seed))
    shuffled = softmax_weights(scores[order], valid[order])
    torch.testing.assert_close(shuffled, softmax_weights(scores, valid)[order], rtol=0, atol=1e-6)


@given(cases(), st.floats(0.125, 8), st.integers(-4, 4))
def test_weights_do_not_depend_on_scale_or_offset(case: Case, scale: float, offset: int) -> None:
    scores, valid = case[0].double(), case[1]
    if valid.any() and scores[valid].std(unbiased=False) < 1e-3:
        return
    other = softmax_weights(scores * scale + offset, valid)
    torch.testing.assert_close(other, softmax_weights(scores, valid), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("weigh", [softmax_weights, kept_weights])
def test_nothing_valid_gives_zeros(weigh: object) -> None:
    scores = torch.randn(2, 3, 2, requires_grad=True)
    weights = weigh(scores, torch.zeros(2, 3, 2, dtype=torch.bool))  # type: ignore[operator]
    assert weights.dtype == torch.float32 and not weights.requires_grad
    assert torch.equal(weights, torch.zeros(2, 3, 2))


@pytest.mark.parametrize("temperature", [1e-3, 0.7, 1e3])
@pytest.mark.parametrize("scores", [[4.0], [2.5, 2.5, 2.5], [0.1] * 7, [-1e30] * 3])
def test_one_target_and_equal_ones_weigh_1_at_any_temperature(
    scores: list[float], temperature: float
) -> None:
    """There is no deviation to divide by, or one of rounding errors alone."""
    case = torch.tensor([*scores, 99.0]).view(1, -1, 1)
    valid = torch.ones_like(case, dtype=torch.bool)
    valid[0, -1] = False
    weights = softmax_weights(case, valid, temperature=temperature)
    torch.testing.assert_close(weights, valid.float(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("temperature", [1e-3, 1e3])
def test_extreme_temperatures_reach_the_clip_or_nothing(temperature: float) -> None:
    scores = torch.linspace(-2, 2, 101).view(1, 101, 1)
    weights = softmax_weights(scores, torch.ones_like(scores, dtype=torch.bool), temperature=temperature)
    assert weights.double().mean().item() == pytest.approx(1.0, abs=1e-7)
    ratio = (weights.max() / weights.min()).item()
    assert ratio == pytest.approx(3 / 0.05) if temperature < 1 else ratio < 1.01
