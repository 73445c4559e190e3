"""An owner elsewhere is watched by one's own clock: gone, or alive, and named then."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from uploader import layout
from uploader.errors import OwnershipError, StoreDenied
from uploader.generation import Owner
from uploader.heartbeat import Heartbeat
from uploader.lease import BEATS, Lease, Sign, sign
from uploader.store.memory import Fault, MemoryStore

pytestmark = pytest.mark.anyio

OWNER = Owner(host="far", pid=7, user="them", since=datetime(1999, 1, 1, tzinfo=UTC))


def beat(count: int, *, released: bool = False, every_s: float = 10.0, step: int | None = 40) -> Heartbeat:
    return Heartbeat(
        generation=3, owner=OWNER, count=count, every_s=every_s, newest_step=step, released=released
    )


@pytest.mark.parametrize(
    ("first", "now", "watched_s", "expected"),
    [
        (beat(1), beat(1), 59.9, Sign.UNKNOWN),
        (beat(1), beat(1), 60.0, Sign.GONE),
        (beat(1), beat(2), 0.1, Sign.LIVES),
        (beat(1), beat(2), 900.0, Sign.LIVES),
        (beat(5), beat(0), 0.1, Sign.LIVES),
        (None, beat(0), 1.0, Sign.LIVES),
        (None, None, 59.0, Sign.UNKNOWN),
        (None, None, 60.0, Sign.GONE),
        (beat(1), None, 1.0, Sign.UNKNOWN),
        (beat(1), None, 60.0, Sign.GONE),
        (beat(1, released=True), beat(1, released=True), 0.0, Sign.GONE),
        (beat(1), beat(2, released=True), 0.1, Sign.GONE),
        (beat(1, every_s=100), beat(1, every_s=100), 60.0, Sign.UNKNOWN),
        (beat(1, every_s=100), beat(1, every_s=100), 100.0 * BEATS, Sign.GONE),
    ],
)
def test_what_a_heartbeat_tells(
    first: Heartbeat | None, now: Heartbeat | None, watched_s: float, expected: Sign
) -> None:
    assert sign(first, now, watched_s, 60.0) is expected


@given(st.floats(0.1, 3600), st.floats(0.1, 3600), st.floats(0, 7200))
def test_who_beats_in_time_is_never_taken_for_dead(every_s: float, lease_s: float, watched_s: float) -> None:
    """An owner whose last beat was seen at the beginning has beaten again after its own time, if it lives."""
    now = beat(1, every_s=every_s)
    if watched_s < every_s:
        assert sign(now, now, watched_s, lease_s) is Sign.UNKNOWN


@dataclass
class Watch:
    """A store, and a clock that only watching moves; ``during`` is called with the seconds that passed."""

    store: MemoryStore = field(default_factory=MemoryStore)
    during: Callable[[float], None] = lambda _: None
    s: float = 5000.0
    said: list[str] = field(default_factory=list)

    async def sleep(self, delay_s: float) -> None:
        self.s += delay_s
        self.during(self.s - 5000.0)
        await anyio.lowlevel.checkpoint()

    def put(self, one: Heartbeat) -> None:
        self.store._keep(layout.heartbeat_key(one.generation), one.encode())

    async def wait(self, lease_s: float = 60.0, *, forced: bool = False) -> bool:
        lease = Lease(lease_s=lease_s, forced=forced, sleep=self.sleep, clock=lambda: self.s)
        return await lease.wait_for(self.store, "demo", [(3, OWNER)], self.said.append)

    @property
    def watched_s(self) -> float:
        return self.s - 5000.0


async def test_one_that_gives_no_sign_is_gone_after_the_lease_and_not_before() -> None:
    watch = Watch()
    watch.put(beat(4))
    assert await watch.wait()
    assert 60.0 <= watch.watched_s < 66.0
    assert watch.said == ["run demo is owned by them@far (process 7), watching its heartbeat for 60 s"]


async def test_one_that_beats_seldom_is_watched_for_longer_and_that_is_said() -> None:
    watch = Watch()
    watch.put(beat(4).model_copy(update={"every_s": 100.0}))
    assert await watch.wait()
    assert 200.0 <= watch.watched_s < 206.0
    assert watch.said[0].endswith("watching its heartbeat for 200 s")


async def test_one_that_never_gave_a_sign_is_waited_for_as_well() -> None:
    watch = Watch()
    assert await watch.wait(30.0)
    assert 30.0 <= watch.watched_s < 33.0


async def test_one_that_was_released_is_not_waited_for() -> None:
    watch = Watch()
    watch.put(beat(4, released=True))
    assert not await watch.wait()
    assert (watch.watched_s, watch.said) == (0.0, [])


async def test_one_that_lives_is_named_with_all_that_helps() -> None:
    watch = Watch()
    watch.put(beat(4))
    watch.during = lambda s: watch.put(beat(4 + int(s // 10)))
    with pytest.raises(OwnershipError) as caught:
        await watch.wait()
    words = ("generation 3 of them@far (process 7)", "since 1999-01-01", "step_40", "--take-over", "run demo")
    assert all(word in str(caught.value) for word in words)
    assert watch.watched_s < 13.0, "and soon"


async def test_one_that_appears_while_it_is_watched_lives() -> None:
    watch = Watch()
    watch.during = lambda s: watch.put(beat(0, step=None)) if s > 30 else None
    with pytest.raises(OwnershipError, match="no step yet"):
        await watch.wait()


async def test_one_that_ends_while_it_is_watched_is_waited_for_no_longer() -> None:
    watch = Watch()
    watch.put(beat(4))
    watch.during = lambda s: watch.put(beat(5, released=True)) if s > 10 else None
    assert await watch.wait()
    assert watch.watched_s < 15.0


async def test_it_can_be_forced_without_a_look() -> None:
    watch = Watch()
    watch.put(beat(4))
    assert not await watch.wait(forced=True)
    assert watch.store.operations == []


async def test_a_clock_that_is_wrong_by_years_tells_nothing() -> None:
    """Neither a time in the file nor one of the store is compared with anything."""
    for year in (1970, 2100):
        watch = Watch(store=MemoryStore(now=lambda: -1e9))
        owner = OWNER.model_copy(update={"since": datetime(year, 1, 1, tzinfo=UTC)})
        watch.put(beat(4).model_copy(update={"owner": owner}))
        assert await watch.wait()
        assert watch.watched_s >= 60.0


async def test_a_heartbeat_that_cannot_be_read_is_none_until_the_next(
    caplog: pytest.LogCaptureFixture,
) -> None:
    watch = Watch()
    watch.store._keep(layout.heartbeat_key(3), b"{")
    assert await watch.wait()
    assert "generations/0003.heartbeat.json" in caplog.text
    watch = Watch()
    watch.store._keep(layout.heartbeat_key(3), b"{")
    watch.during = lambda s: watch.put(beat(9)) if s > 10 else None
    with pytest.raises(OwnershipError):
        await watch.wait()


async def test_of_several_each_must_be_gone() -> None:
    watch = Watch()
    watch.put(beat(4, released=True))
    other = beat(0).model_copy(update={"generation": 2})
    watch.put(other)
    watch.during = lambda s: watch.put(other.model_copy(update={"count": int(s)}))
    lease = Lease(sleep=watch.sleep, clock=lambda: watch.s)
    with pytest.raises(OwnershipError, match="generation 2"):
        await lease.wait_for(watch.store, "demo", [(2, None), (3, OWNER)], watch.said.append)


async def test_a_store_that_refuses_is_no_sign_of_death() -> None:
    watch = Watch(store=MemoryStore(faults=lambda _: Fault(StoreDenied("no"))))
    with pytest.raises(StoreDenied):
        await watch.wait()
