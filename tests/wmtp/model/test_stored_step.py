"""A step that a store holds is a model, found by its run's manifest; anything else stays where it is."""

import dataclasses
from pathlib import Path

import anyio
import pytest
import torch

from uploader import manifest
from uploader.commit import commit
from uploader.errors import SettingsError
from uploader.flow import Flow
from uploader.journal import Journal
from uploader.layout import RunDirectory, RunKeys
from uploader.location import Location
from uploader.manifest import Entry
from uploader.manifest_file import ManifestFile
from uploader.run import RunFile
from uploader.settings import StorageSettings, UploadSettings
from uploader.store import open_store
from uploader.watch import read_step
from wmtp.checkpoint.checkpointer import Checkpointer, Options
from wmtp.checkpoint.uploader_process import Uploading
from wmtp.model.llama import ModelConfig
from wmtp.model.mtp import MTPModel
from wmtp.model.pretrained import open_pretrained
from wmtp.model.stored_step import locate_step
from wmtp.settings import Flags, load_settings
from wmtp.training.models import open_reference
from wmtp.training.sources import model_directory

Place = tuple[Location, StorageSettings]

TINY = ModelConfig(hidden_size=16, intermediate_size=24, attention_heads=2, kv_heads=1, heads=2)


async def upload(place: Place, directory: RunDirectory, *steps: int) -> None:
    """What the uploader does with these steps."""
    run, keys = RunFile.read(directory), RunKeys()
    assert run is not None
    async with open_store(place[0].join(directory.path.name), place[1]) as store:
        for step in steps:
            local, flow = read_step(directory.step(step)), Flow(UploadSettings())
            record = await commit(local, store, keys, flow, Journal(directory), lambda _: None)
            assert record is not None
            entry = Entry.of(record, keys)
            file = ManifestFile(store, directory.path.name, keys)
            await file.update(lambda index, entry=entry: manifest.committed(index, entry, run))  # type: ignore[misc]


@pytest.fixture
def trained(s3_place: Place, tmp_path: Path) -> MTPModel:
    """The model of a run whose steps 1 and 2 are in the store."""
    model = MTPModel.from_settings(TINY, seed=1)
    optimizer = torch.optim.AdamW(model.parameters())
    options = Options(
        storage=s3_place[1], uploading=Uploading.NONE, say=lambda line: None,
        about={"model": dataclasses.asdict(TINY)},
    )  # fmt: skip
    path = tmp_path / "run"
    with Checkpointer(path, model=model, optimizer=optimizer, to=s3_place[0], options=options) as saving:
        saving.restore(None)
        for step in (1, 2):
            model.embed_tokens.weight.grad = torch.ones_like(model.embed_tokens.weight)
            saving.fence()
            optimizer.step()
            saving.save(step, force=True)
            saving.wait()
    anyio.run(upload, s3_place, RunDirectory(path), 1, 2)
    return model


def test_a_step_of_a_run_in_a_store_is_a_reference(
    s3_place: Place, trained: MTPModel, tmp_path: Path
) -> None:
    location, storage = s3_place
    shape = ["model.hidden_size=16", "model.attention_heads=2", "model.kv_heads=1"]
    sets = [f"paths.models.ref={location}/run/step_2", "train.algo=rho1-weighted", *shape]
    settings = load_settings(None, None, sets, Flags(), {}, tmp_path)
    settings = dataclasses.replace(settings, storage=storage)
    found = open_reference(settings, TINY, device=torch.device("cpu"))
    here = open_pretrained(tmp_path / "run/step_2", field="here")
    assert found.fingerprint == here.fingerprint
    for name, weight in trained.state_dict().items():
        assert torch.equal(found.model.state_dict()[name], weight)
    fetched = sorted(path.name for path in model_directory(settings, "ref").iterdir())
    assert not [name for name in fetched if name.startswith("optim-")]


def test_what_is_no_step_of_the_run_is_named(s3_place: Place, trained: MTPModel) -> None:
    location, storage = s3_place
    run = location.join("run")
    for name, says in (("step_7", "the run has no such step"), ("", "that is a run, not one of its steps")):
        with pytest.raises(SettingsError, match=rf"{says}; name s3://.*/run/step_N; .* step_2, step_1"):
            locate_step(run.join(name) if name else run, storage, field="paths.models.ref")
    assert locate_step(run.join("step_1"), storage, field="f") == run.join("step_1/g1")


def test_anything_else_stays_where_it_is(s3_place: Place, tmp_path: Path) -> None:
    location, storage = s3_place
    for place in (location.join("hf"), location.join("step_5"), Location("", str(tmp_path / "step_5"))):
        assert locate_step(place, storage, field="f") == place
