"""The uploader is for any trainer: it needs no torch, knows nothing of ``wmtp``, and serves all the same."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from real_runs import Lab

import uploader

pytestmark = pytest.mark.e2e

ROOM = Path(uploader.__file__).parent

REFUSING = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "numpy", "safetensors", "wmtp"}:
            raise ImportError(f"{name} is not installed")

sys.meta_path.insert(0, Refuse())
import importlib, pkgutil, pathlib
import anyio
import uploader
for module in pkgutil.walk_packages(uploader.__path__, "uploader."):
    importlib.import_module(module.name)
from uploader.host import serve
anyio.run(lambda: serve(pathlib.Path(sys.argv[1]), once=True))
"""


def imported_by(path: Path) -> set[str]:
    """The first words of all a module imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").partition(".")[0])
    return found


def test_it_never_imports_the_trainer_or_what_trainers_need() -> None:
    modules = sorted(ROOM.rglob("*.py"))
    assert ROOM / "service.py" in modules
    strangers = {path.name: imported_by(path) & {"wmtp", "torch", "numpy", "safetensors"} for path in modules}
    assert {name: found for name, found in strangers.items() if found} == {}


def test_it_serves_where_torch_is_not_installed(lab: Lab) -> None:
    lab.train("--no-uploader", "--max-steps", "10").require()
    assert lab.bucket.manifest() is not None and lab.bucket.live_steps() == []
    assert lab.uploaders() == []

    served = subprocess.run(
        [sys.executable, "-c", REFUSING, str(lab.directory)], capture_output=True, text=True, check=False
    )

    assert served.returncode == 0, served.stderr
    assert lab.bucket.live_steps() == [5, 10]
    lab.bucket.require_exact()
