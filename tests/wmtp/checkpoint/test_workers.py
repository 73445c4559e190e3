"""Threads that do what they are given, and stand back."""

import os
import threading

from wmtp.checkpoint.workers import Worker


def test_tasks_are_done_in_order_and_the_thread_ends() -> None:
    done: list[int] = []
    worker = Worker("worker")
    for number in range(10):
        worker.submit(lambda number=number: done.append(number))  # type: ignore[misc]
    worker.close()
    assert done == list(range(10))
    assert "worker" not in {thread.name for thread in threading.enumerate()}


def test_a_task_that_fails_does_not_keep_the_next_from_its_turn() -> None:
    done: list[int] = []
    worker = Worker("worker")
    worker.submit(lambda: 1 / 0)  # type: ignore[arg-type, return-value]
    worker.submit(lambda: done.append(1))
    worker.close()
    assert done == [1]


def test_only_the_worker_stands_back() -> None:
    seen: list[int] = []
    before = os.getpriority(os.PRIO_PROCESS, 0)
    worker = Worker("worker", nice=5, io_level=7)
    worker.submit(lambda: seen.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id())))
    worker.close()
    assert seen == [min(19, before + 5)] or seen == [5]
    assert os.getpriority(os.PRIO_PROCESS, 0) == before
