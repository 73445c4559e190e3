"""The order of an epoch is a permutation, for every size, seed and epoch."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from wmtp.data.permutation import shuffled

SEEDS = st.integers(-(2**70), 2**70)


@given(size=st.integers(1, 3000), seed=SEEDS, epoch=st.integers(0, 10_000))
def test_every_sample_comes_exactly_once(size: int, seed: int, epoch: int) -> None:
    order = shuffled(np.arange(size), size=size, seed=seed, epoch=epoch)
    assert sorted(order.tolist()) == list(range(size))


@given(size=st.integers(1, 2**40), seed=SEEDS, data=st.data())
def test_one_sample_needs_none_of_the_others(size: int, seed: int, data: st.DataObject) -> None:
    indices = np.array(data.draw(st.lists(st.integers(0, size - 1), min_size=2, max_size=20)))
    together = shuffled(indices, size=size, seed=seed, epoch=3)
    alone = [
        int(shuffled(indices[at : at + 1], size=size, seed=seed, epoch=3)[0]) for at in range(len(indices))
    ]
    assert together.tolist() == alone
    assert ((together >= 0) & (together < size)).all()


def test_seeds_and_epochs_give_unrelated_orders() -> None:
    orders = [
        shuffled(np.arange(1000), size=1000, seed=s, epoch=e) for s, e in [(1, 2), (2, 1), (1, 3), (0, 0)]
    ]
    for at, order in enumerate(orders):
        assert abs(np.corrcoef(np.arange(1000), order)[0, 1]) < 0.15
        assert all((order == other).sum() < 10 for other in orders[:at])


def test_the_order_never_changes() -> None:
    """Runs of years ago resume: these numbers are part of the format."""
    assert shuffled(np.arange(8), size=8, seed=1, epoch=0).tolist() == [4, 3, 2, 7, 5, 6, 1, 0]
    assert shuffled(np.arange(8), size=8, seed=1, epoch=1).tolist() == [3, 1, 7, 0, 5, 4, 2, 6]
    large = shuffled(np.array([0, 1, 10**9]), size=10**10, seed=7, epoch=3)
    assert large.tolist() == [4043228635, 4520254640, 3233733567]
