"""What checkpoints of other trainers are called, and what is none."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uploader.patterns import Found, Kind, choose, is_temporary, parse

FILES = {
    "checkpoint_step_1200.pt": Found(1200, Kind.FILE),
    "checkpoint_step_0.safetensors": Found(0, Kind.FILE),
    "step_5.pt": Found(5, Kind.FILE),
    "step_000500.pth": Found(500, Kind.FILE),
    "step-5.pt": Found(5, Kind.FILE),
    "epoch=3-step=1200.ckpt": Found(1200, Kind.LIGHTNING),
    "epoch=3-step=1200-v1.ckpt": Found(1200, Kind.LIGHTNING, 1),
    "step=7.ckpt": Found(7, Kind.LIGHTNING),
    "my model-epoch=01-step=000200-val_loss=0.25.ckpt": Found(200, Kind.LIGHTNING),
    "global_step=10-v12.ckpt": Found(10, Kind.LIGHTNING, 12),
    "epoch=1-step=30-substep=2.ckpt": Found(30, Kind.LIGHTNING),
}
DIRECTORIES = {
    "checkpoint-500": Found(500, Kind.HUGGING_FACE),
    "step-1000": Found(1000, Kind.DIRECTORY),
    "step_7": Found(7, Kind.DIRECTORY),
    "checkpoint_step_7": Found(7, Kind.DIRECTORY),
    "global_step7": Found(7, Kind.DIRECTORY),
    "epoch=0-step=10.ckpt": Found(10, Kind.LIGHTNING),
    "iter_0001000": Found(1000, Kind.DCP),
    "500": Found(500, Kind.DCP),
}
NO_FILES = [
    *("last.ckpt", "model.pt", "step_5.txt", "step_.pt", "step_-5.pt", "step_5.pt.tmp", "step_5.pt.partial"),
    *("tmp-epoch=1-step=3.ckpt", ".step_5.pt", ".epoch=1-step=3.ckpt", "step_5.pt\n", "xstep_5.pt"),
    *("epoch=3.ckpt", "step=x.ckpt", "substep=3.ckpt", "step_5.ckpt.part", "checkpoint-500", "step_5"),
    "step_1234567890123456.pt",  # no record holds it
]
NO_DIRECTORIES = [
    *("tmp-checkpoint-500", "checkpoint-500.tmp", ".checkpoint-500", "checkpoint-x", "step_5.g1.tmp"),
    *("checkpoint-500.partial", "tmp_step_5", "logs", ".uploader", ".trash", "step_5.pt", "step_5_old"),
]


@pytest.mark.parametrize("name", FILES)
def test_files(name: str) -> None:
    assert parse(name, is_directory=False) == FILES[name]


@pytest.mark.parametrize("name", DIRECTORIES)
def test_directories(name: str) -> None:
    assert parse(name, is_directory=True) == DIRECTORIES[name]


@pytest.mark.parametrize("name", NO_FILES)
def test_no_files(name: str) -> None:
    assert parse(name, is_directory=False) is None


@pytest.mark.parametrize("name", NO_DIRECTORIES)
def test_no_directories(name: str) -> None:
    assert parse(name, is_directory=True) is None


@given(st.text(max_size=20), st.booleans())
def test_what_is_temporary_is_never_taken(name: str, is_directory: bool) -> None:
    for temporary in (f".{name}", f"tmp-{name}", f"{name}.tmp", f"{name}.partial"):
        assert is_temporary(temporary)
        assert parse(temporary, is_directory=is_directory) is None


@given(st.integers(0, 10**15 - 1), st.integers(0, 5))
def test_the_step_is_the_number(step: int, zeros: int) -> None:
    number = "0" * zeros + str(step)
    for name, is_directory in ((f"step_{number}.pt", False), (f"checkpoint-{number}", True)):
        found = parse(name, is_directory=is_directory)
        assert found is not None
        assert found.step == step


def test_one_of_several_is_chosen_whatever_their_order() -> None:
    """The earlier row of the table; of one row the later version; of one version the first by name."""
    names = {name: parse(name, is_directory=False) for name in ("step_5.pt", "step_05.pt", "step=5.ckpt")}
    names |= {name: parse(name, is_directory=False) for name in ("step=5-v2.ckpt", "step=5-v10.ckpt")}
    names |= {name: parse(name, is_directory=True) for name in ("checkpoint-5", "step-5")}
    rest = {name: found for name, found in names.items() if found is not None}
    order = []
    while rest:
        chosen = {choose(some) for some in itertools.islice(itertools.permutations(rest.items()), 50)}
        assert len(chosen) == 1
        order += chosen
        del rest[order[-1]]
    assert order == [
        *("checkpoint-5", "step-5", "step_05.pt", "step_5.pt"),
        *("step=5-v10.ckpt", "step=5-v2.ckpt", "step=5.ckpt"),
    ]
