"""Whole, tiny runs inside the test's process; see ``jobs``."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jobs
import pytest
import torch
import yaml

from wmtp.checkpoint.checkpointer import Checkpointer


@pytest.fixture
def random_state() -> Iterator[None]:
    """A run seeds the generators of its process: put back what they were."""
    state = torch.get_rng_state()
    yield
    torch.set_rng_state(state)


@pytest.fixture
def train(tmp_path: Path, random_state: None) -> jobs.Train:
    """Runs a job in ``tmp_path``: ``jobs.run`` with the directory given."""
    (tmp_path / "text").mkdir()
    (tmp_path / "text/words.txt").write_text("".join(f"the {n}th of {n * n} words. " for n in range(400)))
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(jobs.RECIPE))
    return partial(jobs.run, tmp_path)


@pytest.fixture
def reference(train: jobs.Train) -> str:
    """The setting that names a trained reference model."""
    train("reference", "model.heads=1", "seed=7")
    return "paths.models.ref=./checkpoints/reference/step_12"


@pytest.fixture
def no_skipped_saves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps take milliseconds here: where every one is to be saved, each save waits for the one before."""
    save = Checkpointer.save

    def patient(self: Checkpointer, step: int, **options: Any) -> bool:
        self.wait()
        return save(self, step, **options)

    monkeypatch.setattr(Checkpointer, "save", patient)
