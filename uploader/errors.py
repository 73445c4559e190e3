"""One tree of errors: what was being done, to what, whether it can heal, and what to do about it.

``heals`` is a fact of the class: true where trying again later can succeed although nobody changes
anything. Everything else is shown to a person at once.
"""

import re
from typing import ClassVar


class WmtpError(Exception):
    """An error a person will read, on one line: ``doing subject: problem; hint``.

    Args:
        problem: what went wrong.
        doing: what was being done ("reading", "uploading").
        subject: the path, key, field or URI it was done to.
        hint: what to do about it.
    """

    heals: ClassVar[bool] = False
    exit_code: ClassVar[int] = 1

    def __init__(self, problem: str, *, doing: str = "", subject: str = "", hint: str = "") -> None:
        self.problem, self.doing, self.subject, self.hint = problem, doing, subject, hint
        where = " ".join(word for word in (doing, plain(subject)) if word)
        message = f"{where}: {problem}" if where else problem
        super().__init__(plain(f"{message}; {hint}" if hint else message, keep="\n"))


def plain(text: str, *, keep: str = "") -> str:
    """What came from a file or a store moves no cursor, and begins no line of its own in a log."""
    return _CONTROL.sub(lambda found: found[0] if found[0] in keep else repr(found[0])[1:-1], text)


_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


class SettingsError(WmtpError):
    """A setting is unknown, missing or wrong; the subject is the path of its key."""

    exit_code = 2


class StoreError(WmtpError):
    """The object store refused or failed; the subject is the key or the URI."""


class StoreUnavailable(StoreError):
    """Refused or broken connections, 5xx: trying again can succeed."""

    heals = True


class StoreBusy(StoreUnavailable):
    """SlowDown, 503, 429, no answer in time: trying again can succeed, with fewer requests at once."""


class StoreDenied(StoreError):
    """Wrong, missing or expired credentials, or no permission (403)."""


class BucketMissing(StoreError):
    """The bucket does not exist."""


class ObjectMissing(StoreError):
    """No object has this key (404)."""


class UploadMissing(StoreError):
    """No multipart upload has this id: it was completed or aborted."""


class PreconditionFailed(StoreError):
    """A conditional write lost: the object exists already or has changed (412, 409)."""


class ChecksumMismatch(StoreError):
    """The store received other bytes than the checksum names (BadDigest)."""


class CorruptError(WmtpError):
    """Bytes on disk or in the store are not what their record says, or a record can't be read."""


class TooLarge(WmtpError):
    """A JSON file of ours would be larger than its readers take: it is not written."""


class DiskError(WmtpError):
    """The local disk is full, read-only or failing."""


class OwnershipError(WmtpError):
    """Another trainer, uploader or generation owns the run."""


class StartRefused(WmtpError):
    """Starting this way could lose checkpoints or cannot continue the run exactly."""


class RankLate(WmtpError):
    """Another process of the same run did not do in time what this one waits for."""


class NothingToResume(WmtpError):
    """There is no checkpoint where one was asked for."""


class NotDurable(WmtpError):
    """The run ended, but its last checkpoint is not in the store yet."""

    exit_code = 3
