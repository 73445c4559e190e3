"""Retries with an injected clock: nothing here waits."""

import itertools
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uploader.errors import StoreDenied, StoreUnavailable, WmtpError
from uploader.retry import RetryPolicy, retrying

pytestmark = pytest.mark.anyio


@dataclass
class Clock:
    now_s: float = 0.0
    slept_s: list[float] = field(default_factory=list)

    async def sleep(self, seconds: float) -> None:
        self.slept_s.append(seconds)
        self.now_s += seconds

    def policy(self, deadline_s: float | None = None, base_s: float = 0.5) -> RetryPolicy:
        return RetryPolicy(
            base_s=base_s,
            deadline_s=deadline_s,
            sleep=self.sleep,
            clock=lambda: self.now_s,
            random=random.Random(7),
        )


def failing(times: int, error: Callable[[], Exception]) -> tuple[Callable[[], Awaitable[str]], list[int]]:
    """An operation that fails so many times and then says "done", and the list of its attempts."""
    attempts: list[int] = []

    async def operation() -> str:
        attempts.append(len(attempts) + 1)
        if len(attempts) <= times:
            raise error()
        return "done"

    return operation, attempts


def outage() -> StoreUnavailable:
    return StoreUnavailable("no answer in time", subject="s3://b/key", hint="check the network")


async def test_what_heals_is_repeated_without_end() -> None:
    clock = Clock()
    operation, attempts = failing(200, outage)
    assert await retrying(operation, doing="storing", policy=clock.policy()) == "done"
    assert len(attempts) == 201
    assert len(clock.slept_s) == 200
    assert max(clock.slept_s) <= 30.0


async def test_what_does_not_heal_is_raised_at_once() -> None:
    clock = Clock()
    for error in (StoreDenied("wrong secret key"), ValueError("a mistake of ours")):
        operation, attempts = failing(1, itertools.repeat(error).__next__)
        with pytest.raises(type(error)) as caught:
            await retrying(operation, doing="storing", policy=clock.policy())
        assert caught.value is error
        assert attempts == [1]
    assert clock.slept_s == []


async def test_the_deadline_ends_it_and_is_not_overslept() -> None:
    clock = Clock()
    operation, attempts = failing(1000, outage)
    with pytest.raises(StoreUnavailable, match=r"check the network; gave up after 60 s") as caught:
        await retrying(operation, doing="storing", policy=clock.policy(deadline_s=60))
    assert clock.now_s == pytest.approx(60)
    assert len(attempts) > 3
    assert (caught.value.doing, caught.value.subject) == ("storing", "s3://b/key")
    assert isinstance(caught.value.__cause__, StoreUnavailable)


async def test_each_retry_is_announced_with_its_wait() -> None:
    clock = Clock()
    said: list[tuple[str, int, float]] = []

    def announce(error: WmtpError, attempt: int, wait_s: float) -> None:
        said.append((error.problem, attempt, wait_s))

    operation, _ = failing(3, outage)
    await retrying(operation, doing="storing", policy=clock.policy(), on_retry=announce)
    assert said == [("no answer in time", number + 1, clock.slept_s[number]) for number in range(3)]


async def test_the_same_seed_waits_the_same() -> None:
    waits = []
    for _ in range(2):
        clock = Clock()
        operation, _attempts = failing(10, outage)
        await retrying(operation, doing="storing", policy=clock.policy())
        waits.append(clock.slept_s)
    assert waits[0] == waits[1]
    assert len(set(waits[0])) == 10


@given(attempt=st.integers(1, 10_000), seed=st.integers())
def test_a_wait_lies_between_nothing_and_its_bound(attempt: int, seed: int) -> None:
    policy = RetryPolicy(base_s=0.5, cap_s=30.0, random=random.Random(seed))
    assert 0.0 <= policy.wait_s(attempt) <= min(30.0, 0.5 * 2 ** min(attempt - 1, 20))
