"""A process that gives AWS credentials, others each time, all of them about to expire."""

import sys
from pathlib import Path


def giving_keys(directory: Path) -> Path:
    """Write it, with an AWS configuration whose profile ``agent`` asks it, and the number of keys so far.

    Returns:
        Where the files ``config`` and ``count`` are.
    """
    count, process = directory / "count", directory / "process"
    count.write_text("0")
    process.write_text(
        f"#!{sys.executable} -IS\n"
        "import datetime, json, pathlib\n"
        f"count = pathlib.Path({str(count)!r})\n"
        "number = int(count.read_text()) + 1\n"
        "count.write_text(str(number))\n"
        "soon = datetime.datetime.now(datetime.UTC) + datetime.timedelta(minutes=5)\n"
        "print(json.dumps(dict(Version=1, AccessKeyId=f'KEY{number}', SecretAccessKey='s',\n"
        "                      SessionToken=f'TOKEN{number}', Expiration=soon.isoformat())))\n"
    )
    process.chmod(0o700)
    (directory / "config").write_text(f"[profile agent]\ncredential_process = {process}\n")
    return directory
