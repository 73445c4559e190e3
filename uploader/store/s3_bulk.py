"""Requests that follow one that botocore sent: the same for another key, signed here.

botocore takes a millisecond of the processor to make a request: to find the endpoint by its rules, to fill
in what the settings say. For one bucket the answer is always the same. So the first request of a kind goes
its way, and what it came to is kept: where the bucket is, and every header but those that tell of the body.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import quote, urlsplit

from botocore.awsrequest import HeadersDict  # type: ignore[import-untyped]
from botocore.exceptions import ClientError  # type: ignore[import-untyped]
from botocore.parsers import create_parser  # type: ignore[import-untyped]

from uploader import below
from uploader.store.base import NewObject
from uploader.store.body import Body
from uploader.store.s3_credentials import NO_GOOD
from uploader.store.s3_messages import Answer, WireRequest, plain
from uploader.store.s3_wire import Wire
from uploader.store.sigv4 import Keys, signed

OF_THE_BODY: Final = {"content-length", "expect", "transfer-encoding", "content-md5"}
OF_THE_ATTEMPT: Final = {
    "amz-sdk-invocation-id", "amz-sdk-request", "x-amz-date", "x-amz-security-token", "authorization",
}  # fmt: skip
FOR_ONCE: Final = {"if-match", "if-none-match", "range", "x-amz-meta-crc64nvme"}
SUM: Final = "x-amz-checksum-crc64nvme"


@dataclass(frozen=True, slots=True)
class Likeness:
    """What all requests of one operation have in common.

    Attributes:
        place: scheme, host and port.
        path: of the URL, up to the key.
        headers: lower-case names, ``host`` among them.
    """

    place: str
    path: str
    region: str
    headers: Mapping[str, str]

    def put(self, key: str, query: str, body: Body, crc64nvme: str, keys: Keys) -> WireRequest:
        """The like of it for another key, signed now."""
        path, headers = self.path + _quoted(key), {**self.headers, SUM: crc64nvme}
        sent = signed("PUT", path, query, headers, keys, datetime.now(UTC))
        return WireRequest("PUT", self.place, f"{path}?{query}" if query else path, sent, body)

    def get(self, key: str, keys: Keys) -> WireRequest:
        """The like of it for another key, signed now."""
        path = self.path + _quoted(key)
        sent = signed("GET", path, "", self.headers, keys, datetime.now(UTC))
        return WireRequest("GET", self.place, path, sent, None, most_bytes=below.MAX_SMALL_BYTES)


class Bulk:
    """Sends what one client would, once it has seen how botocore does.

    Args:
        credentials: asked before each request, for they may be renewed.
    """

    def __init__(self, client: Any, wire: Wire, credentials: Any) -> None:
        self._client, self._wire, self._credentials = client, wire, credentials
        self._known: dict[str, Likeness] = {}
        self._parser = create_parser("rest-xml")
        for operation in ("PutObject", "UploadPart", "GetObject"):
            client.meta.events.register(f"before-sign.s3.{operation}", self._learn)

    def _learn(self, request: Any, region_name: str, operation_name: str, **_: object) -> None:
        """Keep what a request came to, if it is of a kind that is sent here: nothing in it is for once."""
        headers = plain(request.headers)
        if headers.keys() & FOR_ONCE or (operation_name != "GetObject") != (SUM in headers):
            return
        asked = request.context.get("s3_redirect", {}).get("params", {})
        url, key = urlsplit(request.url), _quoted(asked.get("Key", ""))
        if key and url.path.endswith(key):
            path, place = url.path.removesuffix(key), f"{url.scheme}://{url.netloc}"
            common = {one: headers[one] for one in headers.keys() - OF_THE_BODY - OF_THE_ATTEMPT - {SUM}}
            region = request.context.get("signing", {}).get("region", region_name)
            self._known[operation_name] = Likeness(place, path, region, {**common, "host": url.netloc})

    async def send_part(
        self, key: str, upload_id: str, number: int, body: Body, crc64nvme: str
    ) -> str | None:
        """Send a part the way botocore sent the last one; its ETag, as it was told.

        Returns:
            None where botocore has to do it: nothing like it was sent, or the credentials must be renewed.

        Raises:
            ClientError: as botocore's client does.
        """
        like = self._known.get("UploadPart")
        if like is None:
            return None
        query = f"partNumber={number}&uploadId={quote(upload_id, safe='-_.~')}"
        request = like.put(key, query, body, crc64nvme, await self._keys(like))
        return self._etag("UploadPart", (await self._wire.send([request]))[0])

    async def put_some(self, objects: Sequence[NewObject], root: str) -> list[str]:
        """Store objects the way botocore stored the last one, in turn, up to the first that fails.

        Args:
            root: what comes before their keys in the bucket.

        Returns:
            Their ETags; none where botocore has to send the first, for one of the reasons above.

        Raises:
            ClientError: of the first.
        """
        like = self._known.get("PutObject")
        if like is None:
            return []
        keys = await self._keys(like)
        answers = await self._wire.send(
            like.put(root + one.key, "", one.body, one.crc64nvme, keys) for one in objects
        )
        if self._etag("PutObject", answers[0]) is None:
            return []
        return [one.headers.get("etag", "") for one in answers if one.status < 300]

    async def get(self, key: str) -> dict[str, Any] | None:
        """Read an object the way botocore read the last one; its parsed answer, and in that its bytes.

        Returns:
            None where botocore has to do it, for one of the reasons above. Of too many bytes none are there.

        Raises:
            ClientError: as botocore's client does.
        """
        like = self._known.get("GetObject")
        if like is None:
            return None
        answer = (await self._wire.send([like.get(key, await self._keys(like))]))[0]
        parsed = self._parsed("GetObject", answer)
        if parsed is None:
            return None
        return {"ContentLength": len(answer.body), **parsed, "Body": answer.body}

    async def _keys(self, like: Likeness) -> Keys:
        frozen = await self._credentials.get_frozen_credentials()
        return Keys(frozen.access_key, frozen.secret_key, frozen.token, like.region)

    def _etag(self, operation: str, answer: Answer) -> str | None:
        if answer.status < 300:  # of all that botocore would parse nothing else is asked
            return answer.headers.get("etag", "")
        self._parsed(operation, answer)
        return None

    def _parsed(self, operation: str, answer: Answer) -> dict[str, Any] | None:
        """What botocore's client would say, or raise; None where its credentials must be renewed."""
        model = self._client.meta.service_model.operation_model(operation)
        headers = HeadersDict(answer.headers)
        told = {"body": answer.body, "headers": headers, "status_code": answer.status}
        parsed: dict[str, Any] = self._parser.parse(told, model.output_shape)
        if answer.status < 300:
            return parsed
        if parsed["Error"]["Code"] in NO_GOOD:
            return None
        raise ClientError(parsed, operation)


def _quoted(key: str) -> str:
    return quote(key, safe="/-_.~")
