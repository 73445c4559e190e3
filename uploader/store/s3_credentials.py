"""Static credentials that an agent rewrites on disk: read again when the store says they have expired.

What aiobotocore can refresh by itself (roles, ``credential_process``, instance metadata) it refreshes in
time. What comes from a file it reads once. So when an answer says that the credentials are no good, the chain
is asked anew; if it says something else now, the live client signs with that, and the request is sent once
more. If not, the store's answer stands.
"""

from typing import Any

from aiobotocore.credentials import (  # type: ignore[import-untyped]
    AioCredentials,
    AioRefreshableCredentials,
)
from aiobotocore.session import AioSession  # type: ignore[import-untyped]

NO_GOOD = {
    "ExpiredToken",
    "ExpiredTokenException",
    "TokenRefreshRequired",
    "InvalidToken",
    "InvalidAccessKeyId",
    "400",  # answers to HEAD have a status only
    "401",
    "403",
}
_SIGNED_AFTER = "signed_after_renewals"


class Renewal:
    """Renews the credentials that the clients of ``session`` sign with."""

    def __init__(self, session: AioSession) -> None:
        self._session, self._renewals = session, 0

    def attach(self, client: Any) -> None:
        """Listen to what the client signs and to what it is answered."""
        client.meta.events.register("before-sign.s3", self._signing)
        client.meta.events.register("needs-retry.s3", self._answered)

    def _signing(self, request: Any, **_: object) -> None:
        request.context[_SIGNED_AFTER] = self._renewals

    async def _answered(
        self,
        response: tuple[Any, dict[str, Any]] | None,
        attempts: int,
        request_dict: dict[str, Any],
        **_: object,
    ) -> int | None:
        """Seconds after which to send the request once more, signed anew; None to leave it as it is."""
        code = "" if response is None else str(response[1].get("Error", {}).get("Code", ""))
        if attempts > 1 or code not in NO_GOOD:
            return None
        overtaken = request_dict["context"].get(_SIGNED_AFTER, self._renewals) < self._renewals
        return 0 if overtaken or await self._renew() else None

    async def _renew(self) -> bool:
        """Take what the chain says now; whether that is something else than before."""
        held = await self._session.get_credentials()
        if held is None or isinstance(held, AioRefreshableCredentials):
            return False
        chain = AioSession()
        for name in ("credentials_file", "profile"):
            chain.set_config_variable(name, self._session.get_config_variable(name))
        found = await chain.get_credentials()
        if found is None or isinstance(found, AioRefreshableCredentials):
            return False
        before, now = _parts(held), _parts(found)
        if before == now:
            return False
        held.access_key, held.secret_key, held.token = now
        self._renewals += 1
        return True


def _parts(credentials: AioCredentials) -> tuple[str, str, str | None]:
    return credentials.access_key, credentials.secret_key, credentials.token
