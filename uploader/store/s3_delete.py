"""Objects deleted a thousand at a time, or one by one where a store knows no better."""

from collections.abc import Sequence
from functools import partial

from botocore.exceptions import ClientError  # type: ignore[import-untyped]

from uploader.store.s3_errors import answered
from uploader.store.s3_place import S3Place
from uploader.store.s3_shapes import code, status
from uploader.tasks import side_by_side

DELETE_BATCH = 1000
DELETES_AT_ONCE = 16
NOT_OFFERED = (405, 501)


class Deletion:
    """Deletes objects of a place.

    Args:
        singly: whether the store is known to lack DeleteObjects; else that is noticed.
    """

    def __init__(self, place: S3Place, *, singly: bool) -> None:
        self._place, self._singly = place, singly

    async def delete(self, keys: Sequence[str]) -> None:
        """Delete objects; a key that is not there is no error."""
        for start in range(0, len(keys), DELETE_BATCH):
            batch = keys[start : start + DELETE_BATCH]
            if not self._singly:
                self._singly = not await self._delete_batch(batch)
            if self._singly:
                await side_by_side((partial(self._delete_one, key) for key in batch), at_most=DELETES_AT_ONCE)

    async def _delete_batch(self, batch: Sequence[str]) -> bool:
        """Delete with one request; False where the store has none for that."""
        place = self._place
        with place.speaking("deleting", batch[0]):
            try:
                answer = await place.client.delete_objects(
                    Bucket=place.bucket,
                    Delete={"Objects": [{"Key": place.root + key} for key in batch], "Quiet": True},
                )
            except ClientError as error:
                if status(error) in NOT_OFFERED or code(error) == "NotImplemented":
                    return False
                raise
        for failed in answer.get("Errors", []):
            if failed["Code"] != "NoSuchKey":
                subject = place.name(place.relative(failed["Key"]))
                raise answered(failed["Code"], doing="deleting", subject=subject)
        return True

    async def _delete_one(self, key: str) -> None:
        with self._place.speaking("deleting", key):
            try:
                await self._place.client.delete_object(**self._place.at(key))
            except ClientError as error:
                if code(error) not in ("NoSuchKey", "404"):
                    raise
