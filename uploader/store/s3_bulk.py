"""Bodies that follow one that botocore sent: the same request for another key, signed here.

botocore takes a millisecond of the processor to make a request: to find the endpoint by its rules, to fill
in what the settings say. For one bucket the answer is always the same. So the first body of a kind goes its
way, and what it came to is kept: where the bucket is, and every header but those that tell of the body.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import quote, urlsplit

from botocore.exceptions import ClientError  # type: ignore[import-untyped]
from botocore.parsers import create_parser  # type: ignore[import-untyped]

from uploader.store.body import Body, FileSlice
from uploader.store.s3_body import RequestBody
from uploader.store.s3_credentials import NO_GOOD
from uploader.store.s3_wire import BulkRequest, Wire, plain
from uploader.store.sigv4 import Keys, signed

OF_THE_BODY: Final = {"content-length", "expect", "transfer-encoding", "content-md5"}
OF_THE_ATTEMPT: Final = {"amz-sdk-invocation-id", "amz-sdk-request", "x-amz-date", "authorization"}
SUM: Final = "x-amz-checksum-crc64nvme"


@dataclass(frozen=True, slots=True)
class Likeness:
    """What all requests of one operation have in common.

    Attributes:
        place: the URL up to the key.
        headers: lower-case names.
    """

    place: str
    region: str
    headers: Mapping[str, str]


class Bulk:
    """Sends the bodies of one client, once it has seen how botocore does.

    Args:
        credentials: asked before each request, for they may be renewed.
    """

    def __init__(self, client: Any, wire: Wire, credentials: Any) -> None:
        self._client, self._wire, self._credentials = client, wire, credentials
        self._known: dict[str, Likeness] = {}
        client.meta.events.register("before-sign.s3.PutObject", self._learn)
        client.meta.events.register("before-sign.s3.UploadPart", self._learn)

    def _learn(self, request: Any, region_name: str, operation_name: str, **_: object) -> None:
        """Keep what a request came to, if it carries a file and its checksum."""
        body, headers = request.data, plain(request.headers)
        if not (isinstance(body, RequestBody) and isinstance(body.body, FileSlice) and SUM in headers):
            return
        place, key, rest = request.url.partition("?")[0].rpartition(_quoted(body.key))
        if key and not rest:
            common = {one: headers[one] for one in headers.keys() - OF_THE_BODY - OF_THE_ATTEMPT - {SUM}}
            region = request.context.get("signing", {}).get("region", region_name)
            self._known[operation_name] = Likeness(place, region, common)

    async def put(
        self, operation: str, key: str, body: Body, crc64nvme: str, query: str = ""
    ) -> dict[str, Any] | None:
        """Send a file the way botocore sent the last one; its parsed answer, as botocore's client gives it.

        Returns:
            None where botocore has to do it: nothing like it was sent, or the credentials must be renewed.

        Raises:
            ClientError: as botocore's client does.
        """
        like = self._known.get(operation)
        if like is None or not isinstance(body, FileSlice):
            return None
        frozen = await self._credentials.get_frozen_credentials()
        keys = Keys(frozen.access_key, frozen.secret_key, frozen.token, like.region)
        url = like.place + _quoted(key)
        parts = urlsplit(url)
        headers = {**like.headers, SUM: crc64nvme, "host": parts.netloc}
        sent = signed("PUT", parts.path, query, headers, keys, datetime.now(UTC))
        request = BulkRequest("PUT", f"{url}?{query}" if query else url, sent, RequestBody(body, key))
        return await self._answered(operation, await self._wire.send(request))

    async def _answered(self, operation: str, answer: Any) -> dict[str, Any] | None:
        if answer.status_code < 300:
            return {"ETag": answer.headers["etag"]}
        model = self._client.meta.service_model.operation_model(operation)
        told = {"body": await answer.content, "headers": answer.headers, "status_code": answer.status_code}
        parsed: dict[str, Any] = create_parser("rest-xml").parse(told, model.output_shape)
        if parsed["Error"]["Code"] in NO_GOOD:
            return None
        raise ClientError(parsed, operation)


def part_query(upload_id: str, number: int) -> str:
    """What names a part of an upload."""
    return f"partNumber={number}&uploadId={quote(upload_id, safe='-_.~')}"


def _quoted(key: str) -> str:
    return quote(key, safe="/-_.~")
