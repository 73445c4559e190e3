"""Repeat what can heal, with full jitter; show everything else at once.

Only errors whose class says ``heals`` are repeated, and without end unless the policy names a deadline: an
outage of the store is waited out, a wrong password is not.
"""

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from random import Random
from typing import TypeVar

import anyio
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception

from uploader.errors import WmtpError

T = TypeVar("T")

SLOWEST_BYTES_PER_S = 64 * 1024.0


@dataclass(frozen=True)
class RetryPolicy:
    """How long to wait between attempts, and for how long in all.

    Attributes:
        base_s: upper bound of the first wait; it doubles with each attempt.
        cap_s: upper bound of every wait.
        deadline_s: seconds after which the last error is raised; None means never.
        request_timeout_s: seconds after which one attempt is abandoned, beside the time its bytes may take.
        slowest_bytes_per_s: how slowly a request may send and still be left alone.
        sleep, clock, random: injected by tests and by the simulation.
    """

    base_s: float = 0.5
    cap_s: float = 30.0
    deadline_s: float | None = None
    request_timeout_s: float = 60.0
    slowest_bytes_per_s: Callable[[], float] = lambda: SLOWEST_BYTES_PER_S
    sleep: Callable[[float], Awaitable[None]] = anyio.sleep
    clock: Callable[[], float] = time.monotonic
    random: Random = field(default_factory=Random)

    def wait_s(self, attempt: int) -> float:
        """The wait after ``attempt`` (from 1): uniform between nothing and the doubled bound."""
        doublings = min(attempt - 1, 32)  # beyond that any cap is reached, and floats stay finite
        return self.random.uniform(0.0, min(self.cap_s, self.base_s * 2**doublings))

    def allowed_s(self, size_bytes: int) -> float:
        """How long a request that carries so many bytes may take: a trickle is no progress."""
        return self.request_timeout_s + size_bytes / self.slowest_bytes_per_s()


async def retrying(
    operation: Callable[[], Awaitable[T]],
    *,
    doing: str,
    policy: RetryPolicy,
    on_retry: Callable[[WmtpError, int, float], None] | None = None,
) -> T:
    """The result of ``operation``, tried again while its error can heal.

    Args:
        doing: what the operation does, for an error that does not say so itself.
        on_retry: told of each error that is tried again, the attempt (from 1) and the wait in seconds.

    Raises:
        WmtpError: one that does not heal, at once; one that heals, once the policy's deadline has passed.
    """
    started = policy.clock()

    def spent_s() -> float:
        return policy.clock() - started

    def wait(state: RetryCallState) -> float:
        wait_s = policy.wait_s(state.attempt_number)
        return wait_s if policy.deadline_s is None else min(wait_s, max(0.0, policy.deadline_s - spent_s()))

    def give_up(state: RetryCallState) -> bool:
        return policy.deadline_s is not None and spent_s() >= policy.deadline_s

    def announce(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        if on_retry is not None and isinstance(error, WmtpError):
            on_retry(error, state.attempt_number, state.upcoming_sleep)

    attempts = AsyncRetrying(
        retry=retry_if_exception(_heals), wait=wait, stop=give_up, before_sleep=announce, sleep=policy.sleep,
        reraise=True,
    )  # fmt: skip
    try:
        return await attempts(operation)
    except WmtpError as error:
        if not error.heals:
            raise
        raise _gave_up(error, doing, spent_s()) from error


def _heals(error: BaseException) -> bool:
    return isinstance(error, WmtpError) and error.heals


def _gave_up(error: WmtpError, doing: str, spent_s: float) -> WmtpError:
    """The same error, saying for how long it was repeated."""
    hint = f"gave up after {spent_s:.0f} s"
    return type(error)(
        error.problem,
        doing=error.doing or doing,
        subject=error.subject,
        hint=f"{error.hint}; {hint}" if error.hint else hint,
    )
