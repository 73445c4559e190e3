"""A tracker that fails or hangs neither holds up training nor ends it, and what becomes of it is told."""

import threading
from collections.abc import Callable, Sequence

import pytest

from wmtp.training.background import Background
from wmtp.training.tracking import Entry, Outcome, Refused


def entries(*steps: int) -> list[Entry]:
    return [Entry(step, {"loss": 1.0}, 0.0) for step in steps]


class Sink:
    """Keeps what it is given; ``act`` comes first, with the number of the call, and may raise or wait."""

    def __init__(self, act: Callable[[int], None] = lambda call: None) -> None:
        self.act, self.calls = act, 0
        self.steps: list[int] = []
        self.batches: list[int] = []
        self.outcome: Outcome | None = None

    def _called(self) -> None:
        self.calls += 1
        self.act(self.calls)

    def write(self, entries: Sequence[Entry]) -> None:
        self._called()
        self.steps += [entry.step for entry in entries]
        self.batches.append(len(entries))

    def close(self, outcome: Outcome) -> None:
        self._called()
        self.outcome = outcome


class Failing:
    """Raises in the calls of those numbers."""

    def __init__(self, error: Exception, *calls: int) -> None:
        self.error, self.calls = error, calls

    def __call__(self, call: int) -> None:
        if call in self.calls:
            raise self.error


def background(sink: Sink, told: list[str], *, waiting: int = 100, flush_s: float = 30.0) -> Background:
    return Background(sink, "sink", told.append, waiting=waiting, gather_s=0.001, flush_s=flush_s)


def test_everything_is_written_in_order_and_then_how_it_ended() -> None:
    sink, told = Sink(), list[str]()
    tracker = background(sink, told)
    for step in range(1, 51):
        tracker.write(entries(step))
    tracker.close(Outcome.KILLED)
    assert sink.steps == list(range(1, 51))
    assert (sink.batches[0], sink.outcome, told) == (0, Outcome.KILLED, [])


def test_what_waits_is_written_at_once() -> None:
    opened = threading.Event()
    sink = Sink(lambda call: opened.wait(30) and None)
    tracker = background(sink, [])
    for step in range(1, 51):
        tracker.write(entries(step))
    opened.set()
    tracker.close(Outcome.FINISHED)
    assert sink.batches[:2] == [0, 50]


def test_a_failure_is_told_once_and_what_was_to_be_written_is_written_later() -> None:
    sink, told = Sink(Failing(OSError("the line is cut"), 2, 3, 4, 6)), list[str]()
    tracker = background(sink, told)
    tracker.write(entries(1, 2))
    tracker.close(Outcome.FINISHED)
    assert (sink.steps, sink.outcome) == ([1, 2], Outcome.FINISHED)
    assert told == [
        "sink: the line is cut; training goes on, and it is tried again",
        "sink: it works again",
        "sink: the line is cut; training goes on, and it is tried again",
        "sink: it works again",
    ]


def test_what_is_refused_is_dropped_and_the_rest_written() -> None:
    sink, told = Sink(Failing(Refused("no such metric"), 2)), list[str]()
    ready = threading.Event()

    def tell(line: str) -> None:
        told.append(line)
        ready.set()

    tracker = Background(sink, "sink", tell, gather_s=0.001)
    tracker.write(entries(1, 2))
    assert ready.wait(30)
    tracker.write(entries(3))
    tracker.close(Outcome.FINISHED)
    assert sink.steps == [3]
    assert told == [
        "sink: entries are dropped: no such metric",
        "sink: it works again",
        "sink: 2 entries were dropped in all",
    ]


def test_one_that_hangs_holds_up_nothing_and_is_given_up_at_the_end() -> None:
    never = threading.Event()
    sink, told = Sink(lambda call: never.wait() and None), list[str]()
    tracker = background(sink, told, waiting=3, flush_s=0.01)
    tracker.wait_until_tried(0.01)
    for step in range(1, 6):
        tracker.write(entries(step))
    tracker.close(Outcome.FINISHED)
    assert told == [
        "sink: entries are dropped: too many are waiting",
        "sink: given up after 0.01 s: 3 entries and how the run ended are not there",
        "sink: 2 entries were dropped in all",
    ]
    never.set()


def test_one_that_always_fails_is_given_up_too() -> None:
    told: list[str] = []
    sink = Sink(Failing(OSError("nobody there"), *range(1, 100_000)))
    tracker = background(sink, told, flush_s=0.05)
    tracker.write(entries(1))
    tracker.close(Outcome.FINISHED)
    assert told[0] == "sink: nobody there; training goes on, and it is tried again"
    assert told[1] == "sink: given up after 0.05 s: 1 entries and how the run ended are not there"
    assert (sink.steps, sink.outcome, len(told)) == ([], None, 2)


@pytest.mark.parametrize("error", [None, OSError("nobody there"), Refused("not you")])
def test_the_first_attempt_can_be_waited_for(error: Exception | None) -> None:
    sink = Sink(Failing(error, 1) if error else lambda call: None)
    tracker = background(sink, [])
    tracker.wait_until_tried(30)
    assert sink.calls >= 1
    tracker.close(Outcome.FINISHED)
    assert sink.outcome is Outcome.FINISHED
