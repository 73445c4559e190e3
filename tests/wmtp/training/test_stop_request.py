"""When a run stops: at the first signal where one process is alone, by agreement where there are several."""

import os
import signal

import pytest

from wmtp.training.stopping import StopRequest


def kill(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


def test_alone_the_first_signal_counts_at_once_and_the_second_interrupts() -> None:
    with StopRequest() as stop:
        kill(signal.SIGTERM)
        assert stop.signal is stop.noted is signal.SIGTERM and stop.exit_code == 143
        with pytest.raises(KeyboardInterrupt):
            kill(signal.SIGINT)
        assert stop.exit_code == 130


def test_among_several_a_signal_waits_for_the_others() -> None:
    with StopRequest(alone=False) as stop:
        kill(signal.SIGINT)
        assert stop.noted is signal.SIGINT and stop.signal is None and stop.exit_code == 0
        stop.agree((0, 0))
        assert stop.signal is None
        stop.agree((0, signal.SIGINT, signal.SIGTERM))
        assert stop.signal is signal.SIGTERM
        stop.agree((0,))
        assert stop.signal is signal.SIGTERM, "what was agreed on stays"


def test_an_impatient_person_does_not_wait_for_the_others() -> None:
    with StopRequest(alone=False) as stop:
        kill(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            kill(signal.SIGINT)
        assert stop.signal is signal.SIGINT


def test_after_the_last_step_the_first_signal_interrupts() -> None:
    with StopRequest(alone=False) as stop:
        stop.no_more_steps()
        with pytest.raises(KeyboardInterrupt):
            kill(signal.SIGTERM)
        assert stop.exit_code == 143
