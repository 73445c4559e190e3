"""Everything that can be wrong at a start: one line that names the thing and says what to do.

All the starts run once, two at a time; each test looks at what one of them said.
"""

import contextlib
import json
import socket
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
from real_runs import RUN, Finished, Lab, Place

pytestmark = pytest.mark.e2e

Errors = Mapping[str, tuple[Finished, str]]


@dataclass(frozen=True)
class Wrong:
    """One way to start wrongly.

    Attributes:
        says: what the line must name and advise.
    """

    flags: tuple[str, ...]
    says: tuple[str, ...]
    code: int = 1


BASE = "paths.checkpoints.base_path"
HASTY = ("--set", "paths.checkpoints.store_timeout_s=1", "--set", "storage.connect_timeout_s=1")
CHANGED = ("--set", "model.hidden_size=64", "--set", "data.batch_size=2", "--set", "seed=7")

WRONG: dict[str, Wrong] = {
    "wrong credentials": Wrong(
        ("--set", "storage.credentials_file=./wrong-credentials"), ("s3://", "credentials")
    ),
    "missing bucket": Wrong(
        ("--set", f"{BASE}=s3://there-is-no-such-bucket/x"), ("there-is-no-such-bucket", "create")
    ),
    "dead endpoint": Wrong(
        ("--set", "storage.endpoint_url={dead}", *HASTY),
        ("s3://", "no connection", "storage.endpoint_url", "gave up after 1 s"),
    ),
    "a file in the directory's place": Wrong(
        ("--set", "paths.checkpoints.local_path=./a-file"), ("a-file", "File exists")
    ),
    "truncated manifest": Wrong(
        ("--run-name", "truncated", "--resume", "latest"),
        ("truncated/manifest.json", "wmtp checkpoints rebuild s3://"),
    ),
    "unknown key in a file": Wrong(
        ("--config", "misspelt.yaml"), ("paths.checkpoints.keep_lats", "misspelt.yaml:3", "keep_last"), 2
    ),
    "unknown key in --set": Wrong(("--set", "train.max_stepz=3"), ("train.max_stepz", "max_steps"), 2),
    "misspelt step": Wrong(("--resume", "step1000"), ("--resume", "'step1000'", "did you mean step_1000"), 2),
    "no such step": Wrong(("--resume", "step_1000"), ("no step_1000", RUN, "step_10, step_5")),
    "nothing to resume": Wrong(
        ("--run-name", "another", "--resume", "latest"),
        ("there is no checkpoint", "another", "--resume auto"),
    ),
    "another run that is not there": Wrong(
        ("--run-name", "fork", "--resume", "{base}/nowhere"), ("there is no checkpoint", "/nowhere")
    ),
    "model, data and seed changed": Wrong(
        ("--resume", "latest", *CHANGED),
        ("model.hidden_size is 64", "data.batch_size is 2", "seed is 7", "the checkpoint 42", "--run-name"),
    ),
}


@pytest.fixture(scope="module")
def errors(tmp_path_factory: pytest.TempPathFactory, s3_server: Place) -> Iterator[Errors]:
    """What each wrong start said, beside a run that has its steps 5 and 10 and must still have them after."""
    bucket, storage = s3_server
    base = bucket.join("start-errors")
    with (
        contextlib.closing(Lab(tmp_path_factory.mktemp("errors") / "lab", base, storage)) as lab,
        contextlib.closing(socket.socket()) as dead,
        ThreadPoolExecutor(2) as pool,
    ):
        dead.bind(("127.0.0.1", 0))  # nobody listens here, and nobody else can
        words = {"dead": f"http://127.0.0.1:{dead.getsockname()[1]}", "base": str(base)}
        _prepare(lab)
        lab.train("--max-steps", "10").require()
        lab.bucket_of("truncated").put("manifest.json", b'{"schema_version": 1, "run": "trunc')

        def start(wrong: Wrong) -> Finished:
            return lab.train(*(flag.format(**words) for flag in wrong.flags))

        finished = pool.map(start, WRONG.values())
        yield {
            name: (one, json.dumps([says.format(**words) for says in wrong.says]))
            for (name, wrong), one in zip(WRONG.items(), finished, strict=True)
        }
        assert lab.steps() == lab.bucket.live_steps() == [5, 10]


def _prepare(lab: Lab) -> None:
    credentials = "[default]\naws_access_key_id = nobody\naws_secret_access_key = nothing\n"
    (lab.path / "wrong-credentials").write_text(credentials)
    (lab.path / "a-file").write_text("")
    (lab.path / "misspelt.yaml").write_text("paths:\n  checkpoints:\n    keep_lats: 3\n")


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_start_says_what_and_what_to_do(errors: Errors, name: str) -> None:
    finished, says = errors[name]
    finished.require_error(WRONG[name].code, *json.loads(says))
