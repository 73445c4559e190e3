"""How much at once: parts in flight, bytes a second, bytes in a part. Pure: whoever asks says the time."""

from collections import deque

from uploader.checksum import BLOCK_SIZE_BYTES

MEBIBYTE = 1024**2
LARGEST_PART_BYTES = 128 * MEBIBYTE
"""A part lost is a part sent again: latency never makes one larger than this."""
LATENCY_SHARE = 0.05
SMALL_BYTES = 64 * 1024
"""A request with so little to carry takes the time of its round trip."""


class PartsLimit:
    """How many parts may be in flight: one more after each full window, half when the store is busy.

    Additive increase, multiplicative decrease, as TCP does it (Chiu and Jain, 1989). One burst of refusals
    is one piece of news: after a cut, further ones count only when ``settle_s`` has passed.
    """

    def __init__(self, cap: int) -> None:
        self.cap, self.limit = cap, cap
        self._successes, self._settled_at_s = 0, float("-inf")

    def succeeded(self) -> None:
        """The store took a part."""
        self._successes += 1
        if self._successes >= self.limit:
            self._successes = 0
            self.limit = min(self.cap, self.limit + 1)

    def refused(self, now_s: float, settle_s: float) -> None:
        """The store was busy; what is in flight now takes about ``settle_s``."""
        self._successes = 0
        if now_s >= self._settled_at_s:
            self.limit = max(1, self.limit // 2)
            self._settled_at_s = now_s + settle_s


class Bucket:
    """Bytes a second: what is taken beyond the rate is waited for. Not for several threads at once.

    Attributes:
        rate_bytes_per_s: None means no limit. Lowering it also slows down what is owed already.
    """

    BURST_S = 0.1

    def __init__(self, rate_bytes_per_s: float | None, now_s: float) -> None:
        self.rate_bytes_per_s, self._owed_bytes, self._at_s = rate_bytes_per_s, 0.0, now_s

    def take(self, size_bytes: int, now_s: float) -> float:
        """How many seconds to wait before so many bytes are sent."""
        self._settle(now_s)
        if self.rate_bytes_per_s is None:
            return 0.0
        owed_before, self._owed_bytes = self._owed_bytes, self._owed_bytes + size_bytes
        return max(0.0, owed_before / self.rate_bytes_per_s)

    def set_rate(self, rate_bytes_per_s: float | None, now_s: float) -> None:
        self._settle(now_s)
        self.rate_bytes_per_s = rate_bytes_per_s

    def _settle(self, now_s: float) -> None:
        if self.rate_bytes_per_s is None:
            self._owed_bytes = 0.0
        else:
            paid = (now_s - self._at_s) * self.rate_bytes_per_s
            self._owed_bytes = max(-self.BURST_S * self.rate_bytes_per_s, self._owed_bytes - paid)
        self._at_s = now_s


def chosen_part_size(
    size_bytes: int, wanted_size_bytes: int, at_once: int, latency_s: float, bytes_per_s: float
) -> int:
    """The size of a file's parts in bytes, whole blocks: what is wanted, or more where latency eats the time.

    A part is so large that the latency is at most ``LATENCY_SHARE`` of its time, but a file is never cut into
    fewer parts than may be in flight, if the wanted size would make as many.

    Args:
        bytes_per_s: what one connection sends.
    """
    wanted = max(1, wanted_size_bytes // BLOCK_SIZE_BYTES)
    enough = latency_s * bytes_per_s * (1 - LATENCY_SHARE) / LATENCY_SHARE
    blocks = -(-int(min(enough, LARGEST_PART_BYTES)) // BLOCK_SIZE_BYTES)
    share = size_bytes // (at_once * BLOCK_SIZE_BYTES)
    return max(wanted, min(blocks, share)) * BLOCK_SIZE_BYTES


class Pulse:
    """What the last requests tell of a connection: its latency, and what it sends."""

    def __init__(self) -> None:
        self._latencies_s: deque[float] = deque(maxlen=16)
        self._rates: deque[float] = deque(maxlen=16)
        self.part_s = 1.0

    def sent(self, size_bytes: int, took_s: float) -> None:
        """A request carried so many bytes."""
        if size_bytes <= SMALL_BYTES:
            self._latencies_s.append(took_s)
        elif size_bytes >= MEBIBYTE:
            self.part_s = max(1.0, took_s)
            if took_s > self.latency_s:
                self._rates.append(size_bytes / (took_s - self.latency_s))

    @property
    def latency_s(self) -> float:
        """Of the quickest; 0 while unknown."""
        return min(self._latencies_s, default=0.0)

    @property
    def bytes_per_s(self) -> float:
        """Of the median; 0 while unknown."""
        return sorted(self._rates)[len(self._rates) // 2] if self._rates else 0.0
