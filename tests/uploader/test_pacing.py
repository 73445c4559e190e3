"""When an upload stands back for the trainer, and when it does not."""

import random
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from uploader.pacing import ENOUGH, FLOOR, Pacer, Trainer, has_risen, p95
from uploader.steptimes import StepTime, StepTimes


@dataclass
class Loop:
    """A trainer: each step takes so long, and a bit more or less by chance."""

    pacer: Pacer = field(default_factory=Pacer)
    now_s: float = 0.0
    noise: float = 0.0
    chances: random.Random = field(default_factory=lambda: random.Random(5))
    steps: list[StepTime] = field(default_factory=list)

    def train(self, count: int, step_s: float) -> None:
        for _ in range(count):
            took_s = step_s * (1 + self.noise * self.chances.random())
            self.now_s += took_s
            self.steps.append(StepTime(self.now_s, took_s))

    def upload(self, looks: int, slower: float, steps_a_look: int = 10) -> list[float]:
        """Train while an upload makes steps slower by ``slower``, at the full share of the wire."""
        self.pacer.began(self.now_s, self.steps)
        shares = []
        for _ in range(looks):
            self.train(steps_a_look, 1 + slower * self.pacer.share)
            shares.append(self.pacer.look(self.now_s, self.steps))
        self.pacer.ended(self.now_s)
        return shares


def test_p95_is_the_nearest_rank() -> None:
    assert p95([3.0]) == 3.0
    assert p95([float(number) for number in range(1, 101)]) == 95.0
    assert p95([float(number) for number in range(1, 21)]) == 19.0


def test_one_percent_is_the_line() -> None:
    idle = [1.0] * 40
    assert not has_risen(idle, [1.0099] * 40)
    assert has_risen(idle, [1.0101] * 40)


def test_an_upload_that_disturbs_is_slowed_until_it_does_not() -> None:
    loop = Loop()
    loop.train(60, 1.0)
    shares = loop.upload(looks=100, slower=0.05)
    assert shares[0] == 0.5
    assert 0.1 < sum(shares[20:]) / 80 < 0.3  # 1 % is a fifth of 5 %
    assert max(shares[20:]) * 0.05 < 0.02


def test_one_that_does_not_disturb_is_never_slowed() -> None:
    loop = Loop()
    loop.train(60, 1.0)
    assert loop.upload(looks=50, slower=0.009) == [1.0] * 50


def test_noise_is_no_reason() -> None:
    loop = Loop(noise=0.3)
    loop.train(200, 1.0)
    shares = loop.upload(looks=200, slower=0.0)
    assert sum(shares) / len(shares) > 0.9


def test_whatever_it_does_the_floor_remains_and_it_recovers() -> None:
    loop = Loop()
    loop.train(60, 1.0)
    loop.pacer.began(loop.now_s, loop.steps)
    for _ in range(20):
        loop.train(10, 2.0)  # for another reason than the upload
        share = loop.pacer.look(loop.now_s, loop.steps)
    assert share == FLOOR
    for _ in range(20):
        loop.train(10, 1.0)
        share = loop.pacer.look(loop.now_s, loop.steps)
    assert share == 1.0


def test_without_steps_there_is_no_pacing() -> None:
    loop = Loop()
    assert loop.upload(looks=5, slower=1.0) == [1.0] * 5  # nothing to compare with
    assert Pacer().look(5.0, []) == 1.0


def test_a_trainer_that_has_stopped_needs_nothing() -> None:
    loop = Loop()
    loop.train(60, 1.0)
    assert loop.upload(looks=3, slower=0.5)[-1] < 0.5
    loop.pacer.began(loop.now_s, loop.steps)
    assert loop.pacer.look(loop.now_s + 21, loop.steps) == 1.0


def test_steps_that_an_upload_only_touched_are_of_neither_kind() -> None:
    pacer = Pacer()
    steps = [StepTime(number + 1.0, 1.0) for number in range(20)]
    pacer.began(20.5, steps)
    straddling = [StepTime(21.0, 9.0)] * ENOUGH
    assert pacer.look(21.0, [*steps, *straddling]) == 1.0


@given(
    idle=st.lists(st.floats(0.01, 10), min_size=ENOUGH, max_size=50),
    busy=st.lists(st.lists(st.floats(0.01, 10), max_size=30), max_size=20),
)
def test_the_share_stays_in_its_bounds_and_moves_by_steps(idle: list[float], busy: list[list[float]]) -> None:
    pacer, steps, now_s = Pacer(), list[StepTime](), 0.0
    for took_s in idle:
        now_s += took_s
        steps.append(StepTime(now_s, took_s))
    pacer.began(now_s, steps)
    for some in busy:
        for took_s in some:
            now_s += took_s
            steps.append(StepTime(now_s, took_s))
        before, share = pacer.share, pacer.look(now_s, steps)
        assert FLOOR <= share <= 1.0
        assert before / 2 <= share <= before * 1.25 or share == FLOOR


def test_the_trainers_steps_are_those_of_the_first_rank_that_publishes(tmp_path: Path) -> None:
    rings = [tmp_path / "0.ring", tmp_path / "1.ring"]
    trainer = Trainer(rings)
    assert not trainer.is_publishing
    assert trainer.steps() == []
    clock = iter((1.0, 3.0))
    times = StepTimes(rings[1], lambda: next(clock))
    times.ended()
    times.ended()
    assert trainer.is_publishing
    assert trainer.steps() == [StepTime(3.0, 2.0)]
    times.close()
