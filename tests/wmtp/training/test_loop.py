"""Everything the loop can do, in whole runs: each resumes exactly, and none changes what it only watches."""

import json
import math
import os
import shutil
import signal
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from jobs import Line, Train, files_of, metrics_of, stored

from uploader.errors import SettingsError, WmtpError
from uploader.retention import Committed, KeepBest, Retention, steps_to_keep
from uploader.watch import read_step
from wmtp.data.dataset import Batch
from wmtp.model.pretrained import open_pretrained
from wmtp.training.objective import Baseline, Measures
from wmtp.training.validation import Validation

EMA = "optim.ema_decay=0.9"
EVERY_2 = "train.validation.every=2"
PATIENT = "train.early_stopping.patience=9"
RECOMPUTE = "devices.activation_checkpointing=true"
BFLOAT16 = "devices.dtype=bfloat16"
CRITIC = ("train.algo=critic-wmtp", "loss.critic.stage1_steps=4")
COMPILE = "devices.compile=true"

Poison = Callable[..., None]


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> Poison:
    """Makes steps bad: the loss of some, the gradients of others."""
    backward = Baseline.backward

    def at(losses: Iterable[int] = (), gradients: Iterable[int] = ()) -> None:
        def poisoned(self: Baseline, batches: Sequence[Batch], step: int) -> Measures:
            measures = backward(self, batches, step)
            if step + 1 in losses:
                measures["loss"] = torch.tensor(math.nan)
            if step + 1 in gradients:
                weight = self.model.lm_head.weight
                assert weight.grad is not None
                weight.grad[0, 0] = math.inf
            return measures

        monkeypatch.setattr(Baseline, "backward", poisoned)

    return at


@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param([EMA], id="ema"),
        pytest.param([EVERY_2, PATIENT], id="validation"),
        pytest.param(["train.validation.every=4", EMA, PATIENT], id="validation-not-at-the-border"),
        pytest.param([RECOMPUTE], id="recompute"),
        pytest.param([BFLOAT16], id="bfloat16"),
        pytest.param([EMA, EVERY_2, PATIENT, RECOMPUTE, BFLOAT16], id="all"),
        pytest.param([*CRITIC, EMA, EVERY_2, RECOMPUTE], id="all-critic"),
        pytest.param(["train.algo=rho1-tokenskip", EMA, EVERY_2, BFLOAT16], id="all-tokenskip"),
    ],
)
def test_n_and_n_more_steps_equal_2n_bit_for_bit(
    train: Train, tmp_path: Path, overrides: list[str], request: pytest.FixtureRequest
) -> None:
    if overrides[0].startswith("train.algo"):
        overrides = [*overrides, request.getfixturevalue("reference")]
    whole = train("whole", *overrides)
    again = train("again", *overrides, resume="./checkpoints/whole/step_6")
    assert again == whole[6:] and len(again) == 6
    one, other = (files_of(tmp_path / f"checkpoints/{name}/step_12") for name in ("again", "whole"))
    assert one == other


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # those of the compiler itself
@pytest.mark.skipif(not (shutil.which("c++") or shutil.which("g++")), reason="there is no C++ compiler")
@pytest.mark.parametrize(
    "overrides", [[], [EMA, RECOMPUTE, EVERY_2], [BFLOAT16]], ids=["plain", "all", "bf16"]
)
def test_compiled_too(train: Train, tmp_path: Path, overrides: list[str]) -> None:
    """Compiled anew for each run, as in a process of its own."""
    torch._dynamo.reset()
    whole = train("whole", COMPILE, *overrides)
    torch._dynamo.reset()
    again = train("again", COMPILE, *overrides, resume="./checkpoints/whole/step_6")
    assert again == whole[6:] and len(again) == 6
    one, other = (files_of(tmp_path / f"checkpoints/{name}/step_12") for name in ("again", "whole"))
    assert one == other
    exact = train("exact", *overrides, "train.max_steps=1", "model.dropout=0")
    compiled = train("compiled", COMPILE, *overrides, "train.max_steps=1", "model.dropout=0")
    assert compiled[0]["heads"] == pytest.approx(
        exact[0]["heads"], rel=1e-2 if BFLOAT16 in overrides else 1e-5
    )


def test_bad_steps_change_nothing_and_a_resume_between_them_is_exact(
    train: Train, poison: Poison, no_skipped_saves: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = train("good", EMA)
    poison(losses=[3, 8], gradients=[4, 9])
    overrides = [EMA, "paths.checkpoints.save_interval=1"]
    whole = train("whole", *overrides)
    out = capsys.readouterr().out
    assert "step 3  WARNING: loss is nan: its gradients are thrown away (1 in a row, 3 end the run)" in out
    assert "step 4  WARNING: grad_norm is inf" in out and "(2 in a row" in out
    assert "bad steps    4, " in out
    assert "step_3  put off" in out
    assert whole[:2] == good[:2] and whole[2]["loss"] is None and whole[3]["grad_norm"] is None
    assert [line.get("bad_steps") for line in whole] == [None] * 2 + [1, 2, 2, 2, 2, 3, 4, 4, 4, 4]
    for name in ("step", "lr"):
        assert [line[name] for line in whole] == [line[name] for line in good], "position and schedule go on"
    saved = {int(path.name[5:]) for path in (tmp_path / "checkpoints/whole").glob("step_*")}
    assert saved == {*range(1, 13)} - {3, 4, 8, 9}

    again = train("again", *overrides, resume="./checkpoints/whole/step_6")
    assert again == whole[6:]
    one, other = (files_of(tmp_path / f"checkpoints/{name}/step_12") for name in ("again", "whole"))
    assert one == other


def test_a_bad_step_leaves_weights_averages_and_optimizer_as_they_were(
    train: Train, poison: Poison, no_skipped_saves: None, tmp_path: Path
) -> None:
    poison(gradients=[3])
    train("run", EMA, "train.max_steps=3", "paths.checkpoints.save_interval=2")
    before, after = (stored(tmp_path / f"checkpoints/run/step_{step}") for step in (2, 3))
    assert [name for name in before if name.endswith("safetensors")] != []
    assert {name for name in before if before[name] != after[name]} == {
        "position",
        "guard",
        "random",
        "optim",
    }
    assert (after["guard"], after["position"]["step"]) == ({"in_a_row": 1, "total": 1}, 3)
    assert before["optim"]["main"]["state"] == after["optim"]["main"]["state"]


@pytest.mark.parametrize(
    ("losses", "gradients", "says"),
    [
        ([7, 8, 9], [], "training step 9: loss is nan, and optim.max_bad_steps is 3; "),
        ([], [7, 8, 9], "training step 9: grad_norm is inf, and"),
        ([9], [7, 8, 9], "training step 9: loss is nan and grad_norm is inf, and"),
    ],
)
def test_too_many_bad_steps_end_the_run_and_save_nothing(
    train: Train,
    poison: Poison,
    no_skipped_saves: None,
    tmp_path: Path,
    losses: list[int],
    gradients: list[int],
    says: str,
) -> None:
    poison(losses, gradients)
    with pytest.raises(WmtpError) as caught:
        train("run", "paths.checkpoints.save_interval=3")
    assert str(caught.value).startswith(says)
    assert "the last good checkpoint is step_6" in str(caught.value)
    assert caught.value.exit_code == 1
    run = tmp_path / "checkpoints/run"
    assert sorted(path.name for path in run.glob("step_*")) == ["step_3", "step_6"]
    assert [line["step"] for line in metrics_of(run)] == [*range(1, 10)]
    model = open_pretrained(run / "step_6", field="").model
    assert all(weight.isfinite().all() for weight in model.parameters())


def test_the_count_of_bad_steps_in_a_row_outlives_a_restart(train: Train, poison: Poison) -> None:
    poison(losses=[5, 6, 7])
    train("run", "train.max_steps=6")
    with pytest.raises(WmtpError, match=r"training step 7: .*last good checkpoint is step_6"):
        train("run", resume="latest")


def test_one_bad_step_can_be_too_many(train: Train, poison: Poison) -> None:
    poison(losses=[1])
    with pytest.raises(WmtpError, match=r"training step 1: loss is nan, .*; no step was saved yet"):
        train("run", "optim.max_bad_steps=1")


HELD_OUT = {"held_out", "held_out_accuracy", "bits_per_byte"}


def without(lines: list[Line], names: set[str]) -> list[Line]:
    return [{name: value for name, value in line.items() if name not in names} for line in lines]


def test_validation_measures_and_leaves_training_as_it_is(train: Train, tmp_path: Path) -> None:
    blind = train("blind")
    seeing = train("seeing", "train.validation.every=1")
    assert without(seeing, HELD_OUT) == blind
    states = [stored(tmp_path / f"checkpoints/{name}/step_12") for name in ("blind", "seeing")]
    for state in states:
        del state["early_stopping"]
    assert states[0] == states[1]
    assert all(len(line["held_out"]) == len(line["held_out_accuracy"]) == 2 for line in seeing)
    expected = [line["held_out"][0] / math.log(2) for line in seeing]
    assert [line["bits_per_byte"] for line in seeing] == pytest.approx(expected, rel=0.1)


def test_averages_are_measured_beside_the_weights(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    lines = train("run", EMA, "train.validation.every=5", "optim.learning_rate=1e-2", "train.max_steps=10")
    assert [line["step"] for line in lines if "bits_per_byte" in line] == [5, 10]
    assert HELD_OUT | {f"ema_{name}" for name in HELD_OUT} <= lines[4].keys()
    assert lines[9]["ema_bits_per_byte"] > lines[9]["bits_per_byte"], "averages lag behind"
    shown = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("step 5/10  held_out ") for line in shown) == 1
    assert sum(line.startswith("step 5/10  ema_held_out ") for line in shown) == 1
    assert any(line.startswith("averaged     ") for line in shown)


def test_checkpoints_of_validated_steps_say_what_was_measured(
    train: Train, no_skipped_saves: None, tmp_path: Path
) -> None:
    every = ["train.validation.every=4", "paths.checkpoints.save_interval=2", "optim.learning_rate=3"]
    lines = train("run", EMA, *every, "optim.warmup_steps=0")
    records = {
        step: read_step(tmp_path / f"checkpoints/run/step_{step}").record.metrics for step in range(2, 13, 2)
    }
    assert {step for step, metrics in records.items() if "bits_per_byte" in metrics} == {4, 8, 12}
    for step in (4, 8, 12):
        line, metrics = lines[step - 1], records[step]
        for name in ("bits_per_byte", "ema_bits_per_byte", "loss"):
            assert metrics[name] == line[name]
        assert metrics["held_out"] == line["held_out"][0]
        assert metrics["held_out_accuracy"] == line["held_out_accuracy"][0]
    committed = [Committed(step, datetime(2026, 1, 1, tzinfo=UTC), records[step]) for step in records]
    best = min((4, 8, 12), key=lambda step: lines[step - 1]["bits_per_byte"])
    policy = Retention(keep_last=1, keep_best=KeepBest(metric="bits_per_byte", mode="min", n=1))
    assert steps_to_keep(committed, policy, now=datetime(2026, 1, 2, tzinfo=UTC)) == {best, 12}


def test_the_last_step_is_measured_once(
    train: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured: list[int] = []
    measure = Validation.measure

    def counted(self: Validation) -> Any:
        measured.append(1)
        return measure(self)

    monkeypatch.setattr(Validation, "measure", counted)
    lines = train("run", "train.validation.every=12")
    assert len(measured) == 1
    assert f"{lines[-1]['bits_per_byte']:.3f} bits a byte" in capsys.readouterr().out
    train("other", "train.validation.every=8")
    assert len(measured) == 3
    train("third")
    assert len(measured) == 4


STALE = ["optim.learning_rate=1e-12", EVERY_2, "train.early_stopping.min_delta=1"]


def test_a_run_that_gets_no_better_ends_and_more_patience_goes_on(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = train("whole", *STALE)
    two = [*STALE, "paths.checkpoints.save_final=false", "train.early_stopping.patience=2"]
    stopped = train("run", *two)
    out = capsys.readouterr().out
    assert stopped == whole[:6]
    assert "stopped      early: bits_per_byte has been no better than " in out
    assert "wmtp train --set train.early_stopping.patience=4\n" in out
    run = tmp_path / "checkpoints/run"
    assert [path.name for path in run.glob("step_*")] == ["step_6"], "saved although save_final is off"

    assert train("run", *two, resume="latest") == stopped
    out = capsys.readouterr().out
    assert "finished at step 6, for bits_per_byte has been" in out and "nothing left to train" in out

    train("run", *STALE, "train.early_stopping.patience=4", resume="latest")
    assert metrics_of(run) == whole[:10]
    train("run", *STALE, resume="latest")
    assert metrics_of(run) == whole
    assert stored(run / "step_12") == stored(tmp_path / "checkpoints/whole/step_12")


def test_a_signal_during_validation_ends_the_run_after_it_with_that_step_saved(
    train: Train, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = train("whole", EVERY_2)
    measure = Validation.measure

    def interrupted(self: Validation) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return measure(self)

    monkeypatch.setattr(Validation, "measure", interrupted)
    stopped = train("run", EVERY_2, code=143)
    monkeypatch.setattr(Validation, "measure", measure)
    assert stopped == whole[:2], "the validation was finished, and no step came after it"
    metrics = read_step(tmp_path / "checkpoints/run/step_2").record.metrics
    assert metrics["bits_per_byte"] == whole[1]["bits_per_byte"]
    assert train("run", EVERY_2, resume="latest") == whole
    assert files_of(tmp_path / "checkpoints/run/step_12") == files_of(tmp_path / "checkpoints/whole/step_12")


def test_bfloat16_leaves_the_weights_in_float32_and_the_losses_close(train: Train, tmp_path: Path) -> None:
    exact, rounded = train("exact", "model.dropout=0"), train("rounded", "model.dropout=0", BFLOAT16)
    assert exact != rounded
    for one, other in zip(exact, rounded, strict=True):
        assert other["heads"] == pytest.approx(one["heads"], rel=0.01)
    tree = stored(tmp_path / "checkpoints/rounded/step_12")
    model = open_pretrained(tmp_path / "checkpoints/rounded/step_12", field="").model
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert tree["optim"]["main"]["param_groups"][0]["lr"] > 0


def test_recomputing_activations_changes_no_bit_of_a_run(train: Train, tmp_path: Path) -> None:
    assert train("kept", EMA) == train("again", EMA, RECOMPUTE)
    one, other = (stored(tmp_path / f"checkpoints/{name}/step_12") for name in ("kept", "again"))
    assert one == other


def test_what_may_change_at_a_resume_is_told(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    train("one", "train.max_steps=6")
    train(
        "other", EVERY_2, RECOMPUTE, "train.max_steps=6", PATIENT, "optim.max_bad_steps=2",
        resume="./checkpoints/one/step_6",
    )  # fmt: skip
    out = capsys.readouterr().out
    for name, before, now in [
        ("train.validation.every", None, 2),
        ("train.early_stopping.patience", None, 9),
        ("devices.activation_checkpointing", False, True),
        ("optim.max_bad_steps", 3, 2),
    ]:
        assert f"changed since the checkpoint: {name} {before} -> {now}\n" in out


@pytest.mark.parametrize(
    ("overrides", "subject", "says"),
    [
        ([EVERY_2, "data.validation_fraction=0"], "train.validation.every", "hold some out"),
        ([PATIENT], "train.early_stopping.patience", "set train.validation.every"),
        (
            [PATIENT, EVERY_2, "train.early_stopping.metric=ema_bits_per_byte"],
            "train.early_stopping.metric",
            "set optim.ema_decay, or wait for bits_per_byte",
        ),
        (
            ["paths.checkpoints.retention.keep_best={metric: bits_per_byte, mode: min}"],
            "paths.checkpoints.retention.keep_best.metric",
            "set train.validation.every",
        ),
        (
            ["train.checkpointing.retention.keep_best={metric: bit_per_byte, mode: min}", EVERY_2],
            "train.checkpointing.retention.keep_best.metric",
            "did you mean bits_per_byte?",
        ),
        (
            [EVERY_2, "paths.checkpoints.local_retention.keep_best={metric: ema_held_out, mode: min}"],
            "paths.checkpoints.local_retention.keep_best.metric",
            "set optim.ema_decay",
        ),
    ],
)
def test_what_can_not_be_measured_is_found_before_the_first_step(
    train: Train, tmp_path: Path, overrides: list[str], subject: str, says: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        train("refused", *overrides)
    assert caught.value.subject == subject
    assert says in str(caught.value)
    assert not (tmp_path / "checkpoints/refused").exists()


def test_a_held_out_part_that_is_all_prompts_is_found_before_the_first_step(
    train: Train, tmp_path: Path
) -> None:
    records = [{"prompt": "p", "completion": "solution " * 200}, {"prompt": "q " * 800, "completion": "s"}]
    path = tmp_path / "records.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    fraction = ["data.train=./records.jsonl", "data.validation_fraction=0.3"]
    with pytest.raises(SettingsError, match=r"data\.validation_fraction: .* nothing to predict"):
        train("refused", *fraction, "train.validation.every=2", "train.validation.samples=1")
