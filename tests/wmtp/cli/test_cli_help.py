"""``--help`` reads well, and starts nothing that takes long to start."""

import subprocess
import sys

import pytest
from cli_runs import wmtp

COMMANDS = ["train", "uploader", "checkpoints", "status", "eval", "export", "dev-s3"]
ALL = [
    [],
    *([command] for command in COMMANDS),
    *(
        ["checkpoints", command]
        for command in (
            "ls",
            "show",
            "verify",
            "restore",
            "pin",
            "unpin",
            "prune",
            "rebuild",
            "uploads",
        )
    ),
]
HEAVY = [
    "torch", "numpy", "aioboto3", "botocore", "yaml", "anyio",
    "wmtp.settings", "wmtp.dev_s3", "uploader.settings", "uploader.record",  # pydantic models of ours
]  # fmt: skip
SHOW_MODULES = """
import atexit, sys
atexit.register(lambda: print("\\nMODULES", *sys.modules))
from wmtp.cli import main
main()
"""


@pytest.mark.parametrize("command", ALL, ids=lambda words: " ".join(["wmtp", *words]))
def test_help_imports_nothing_heavy(command: list[str]) -> None:
    arguments = [sys.executable, "-c", SHOW_MODULES, *command, "--help"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    text, _, modules = done.stdout.rpartition("\nMODULES ")
    assert "Usage:" in text
    assert [name for name in HEAVY if name in modules.split()] == []


@pytest.mark.parametrize("command", ALL, ids=lambda words: " ".join(["wmtp", *words]))
def test_help_reads_well(command: list[str]) -> None:
    result = wmtp(*command, "--help")
    assert result.exit_code == 0
    assert "..." not in result.stdout.replace("[ARGS]...", "").replace(
        "[STEP]...", ""
    )  # no sentence is cut off
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_help_names_every_command() -> None:
    lines = wmtp("--help").stdout.split("Commands:")[1].splitlines()
    assert sorted(line.split()[0] for line in lines if line.strip()) == sorted(COMMANDS)


@pytest.mark.parametrize("arguments", [["no-such-command"], ["status", "--no-such-option"], ["uploader"]])
def test_usage_errors_exit_2(arguments: list[str]) -> None:
    assert wmtp(*arguments).exit_code == 2
