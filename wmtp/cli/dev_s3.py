"""``wmtp dev-s3``: an S3 server on this machine, for trying things and for tests."""

import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wmtp.cli.reporting import one_line_errors

if TYPE_CHECKING:
    from wmtp.dev_s3 import DevS3

LOOK_S = 0.5


def register(app: typer.Typer) -> None:
    app.command("dev-s3", short_help="Run an S3 server on this machine until Ctrl-C.")(dev_s3)


@one_line_errors
def dev_s3(
    data: Annotated[
        Path, typer.Option(help="Where objects, ports and credentials are kept.", metavar="DIR")
    ] = Path(".dev-s3"),
    port: Annotated[
        int | None,
        typer.Option(
            help="Port of S3; default: that of last time, or a free one.", metavar="N", min=1, max=55_535
        ),
    ] = None,
    bucket: Annotated[str, typer.Option(help="Bucket to create.", metavar="NAME")] = "wmtp",
) -> None:
    """Run an S3 server (SeaweedFS) on this machine until Ctrl-C.

    Its data stay for the next time. It prints what other programs need to reach it.
    """
    from uploader.files import disk_errors
    from wmtp.dev_s3 import DevS3

    def stop(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, stop)
    server = DevS3(data, port=port)
    try:
        with disk_errors("serving", data):
            server.start()
        server.ensure_bucket(bucket)
        _announce(server, bucket)
        _wait(server)
    finally:
        server.stop()


def _announce(server: "DevS3", bucket: str) -> None:
    print(f"S3 at {server.endpoint_url}, bucket {bucket}, data in {server.data}; Ctrl-C stops it")
    print(f"  export AWS_ENDPOINT_URL={server.endpoint_url}")
    print(f"  export AWS_SHARED_CREDENTIALS_FILE={server.credentials_file}")
    print("  export AWS_REGION=us-east-1", flush=True)


def _wait(server: "DevS3") -> None:
    """Until a signal, or until the server ends by itself."""
    from uploader.errors import StoreError

    while server.running():
        time.sleep(LOOK_S)
    hint = f"{server.log_file} tells why"
    raise StoreError("it ended by itself", doing="serving", subject=str(server.data), hint=hint)
