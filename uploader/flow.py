"""What may be in flight to one endpoint: parts at once, bytes a second, bytes in a part.

``limits`` and ``pacing`` decide, this room carries out. All runs that one process uploads to an endpoint
share its flow.
"""

import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

import anyio

from uploader.errors import StoreBusy, WmtpError
from uploader.limits import MEBIBYTE, Bucket, PartsLimit, Pulse, chosen_part_size
from uploader.location import Location
from uploader.pacing import FLOOR, Trainer
from uploader.retry import SLOWEST_BYTES_PER_S
from uploader.settings import StorageSettings, UploadSettings

SPARE_CONNECTIONS = 24
LOOK_S = 1.0
"""How often the trainer's step times are looked at while bytes are sent."""


@dataclass(frozen=True, slots=True)
class FlowState:
    """What is allowed now, for ``status``.

    Attributes:
        bandwidth_bytes_per_s: as last measured; None while nothing is sent past the event loop.
        bandwidth_limit_bytes_per_s: the bound of ``max_bandwidth`` and of pacing; None where there is none.
        pacing: the share of the wire left to uploads for the trainer's sake; None without step times.
    """

    parts_limit: int
    bandwidth_bytes_per_s: float | None
    bandwidth_limit_bytes_per_s: float | None
    pacing: float | None


class Flow:
    """The bounds on what is in flight to one endpoint. Waiting for a slot is first come, first served.

    ``pace`` is called from threads, everything else from the event loop.
    """

    def __init__(self, settings: UploadSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings, self._clock, self._lock = settings, clock, threading.Lock()
        self._parts, self._pulse = PartsLimit(settings.parts_in_flight), Pulse()
        self._slots = anyio.CapacityLimiter(settings.parts_in_flight)
        self._in_flight = 0
        self._trainers: dict[str, Trainer] = {}
        self._share, self._full_bytes_per_s = 1.0, 0.0
        self._bytes_per_s: float | None = None
        self._granted_bytes, self._looked_s = 0, clock()
        self._bucket = Bucket(None, self._looked_s)
        self._set_rate(self._looked_s)

    def adopt(self, settings: UploadSettings) -> None:
        """Go by the settings of a run that begins to use this flow."""
        self._settings, self._parts = settings, PartsLimit(settings.parts_in_flight)
        with self._lock:
            self._set_rate(self._clock())
        self._slots.total_tokens = self.parts_limit

    @contextmanager
    def pacing(self, name: str, trainer: Trainer) -> Iterator[None]:
        """Stand back for a trainer while the context lasts."""
        self._trainers[name] = trainer
        try:
            yield
        finally:
            del self._trainers[name]

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """One part in flight, waiting for its turn."""
        async with self._slots:
            self._come()
            try:
                yield
                self._parts.succeeded()
            finally:
                self._go()

    @property
    def connections(self) -> int:
        """How many requests may be under way: each part in flight has one, and small ones never wait."""
        return self._settings.parts_in_flight + SPARE_CONNECTIONS

    @property
    def part_size_bytes(self) -> int:
        """The wanted size of a part."""
        return self._settings.part_size_bytes

    def part_size(self, size_bytes: int) -> int:
        """The size of the parts of a file, in whole blocks, by what is known of the endpoint now."""
        pulse, at_once = self._pulse, self._settings.parts_in_flight
        return chosen_part_size(size_bytes, self.part_size_bytes, at_once, pulse.latency_s, pulse.bytes_per_s)

    @property
    def parts_limit(self) -> int:
        """How many parts may be in flight now: each connection has a MiB a second, or there are fewer."""
        rate = self._bucket.rate_bytes_per_s
        return self._parts.limit if rate is None else min(self._parts.limit, max(1, int(rate / MEBIBYTE)))

    def slowest_bytes_per_s(self) -> float:
        """How slow a part may be before it counts as stuck: slower only where we hold it back ourselves."""
        bounds = [self._settings.max_bandwidth_bytes_per_s, self._full_bytes_per_s * FLOOR]
        lowest = min((bound for bound in bounds if bound), default=float("inf"))
        return min(SLOWEST_BYTES_PER_S, lowest / self._settings.parts_in_flight / 2)

    def sent(self, size_bytes: int, took_s: float) -> None:
        """The store took a body."""
        self._pulse.sent(size_bytes, took_s)

    def failed(self, error: WmtpError) -> None:
        """A request failed and will be repeated."""
        if isinstance(error, StoreBusy):
            self._parts.refused(self._clock(), self._pulse.part_s)
            self._slots.total_tokens = self.parts_limit

    def pace(self, size_bytes: int) -> float:
        """How many seconds to wait before so many bytes are sent. From any thread."""
        with self._lock:
            now_s = self._clock()
            if now_s - self._looked_s >= LOOK_S:
                self._look(now_s)
            self._granted_bytes += size_bytes
            return self._bucket.take(size_bytes, now_s)

    def state(self) -> FlowState:
        """For people."""
        return FlowState(
            parts_limit=self.parts_limit,
            bandwidth_bytes_per_s=self._bytes_per_s,
            bandwidth_limit_bytes_per_s=self._bucket.rate_bytes_per_s,
            pacing=self._share if any(one.is_publishing for one in self._trainers.values()) else None,
        )

    def _come(self) -> None:
        self._in_flight += 1
        if self._in_flight == 1:
            with self._lock:
                now_s = self._looked_s = self._clock()
                self._granted_bytes = 0
                for trainer in self._trainers.values():
                    trainer.pacer.began(now_s, trainer.steps())

    def _go(self) -> None:
        self._in_flight -= 1
        self._slots.total_tokens = self.parts_limit
        if self._in_flight == 0:
            with self._lock:
                for trainer in self._trainers.values():
                    trainer.pacer.ended(self._clock())

    def _look(self, now_s: float) -> None:
        """Measure what went since the last look, and hear what the trainers can spare."""
        self._bytes_per_s = self._granted_bytes / (now_s - self._looked_s)
        if self._share == 1.0:
            self._full_bytes_per_s = max(self._bytes_per_s, 0.8 * self._full_bytes_per_s)
        self._granted_bytes, self._looked_s = 0, now_s
        shares = [one.pacer.look(now_s, one.steps()) for one in [*self._trainers.values()]]
        self._share = min(shares, default=1.0)
        self._set_rate(now_s)

    def _set_rate(self, now_s: float) -> None:
        held_back = self._share * self._full_bytes_per_s if self._share < 1.0 else None
        bounds = [bound for bound in (self._settings.max_bandwidth_bytes_per_s, held_back) if bound]
        self._bucket.set_rate(min(bounds, default=None), now_s)


class Flows:
    """The flow to each endpoint that this process uploads to.

    Args:
        max_bandwidth_bytes_per_s: for each of them, whatever a run says.
    """

    def __init__(self, max_bandwidth_bytes_per_s: int | None = None) -> None:
        self._max_bandwidth_bytes_per_s, self._flows = max_bandwidth_bytes_per_s, dict[str, Flow]()

    def to(self, location: Location, storage: StorageSettings, settings: UploadSettings) -> Flow:
        """The one to the endpoint of ``location``; from now on with these settings."""
        if self._max_bandwidth_bytes_per_s is not None:
            changed = {"max_bandwidth_bytes_per_s": self._max_bandwidth_bytes_per_s}
            settings = settings.model_copy(update=changed)
        endpoint = storage.endpoint_url or "AWS" if location.is_s3 else "file"
        if endpoint in self._flows:
            self._flows[endpoint].adopt(settings)
        else:
            self._flows[endpoint] = Flow(settings)
        return self._flows[endpoint]
