"""Every algorithm as ``wmtp train`` runs it: it resumes exactly; what it lacks is found before the start."""

import json
from pathlib import Path

import pytest
import torch
from jobs import Train, files_of
from safetensors.torch import load_file, save_file

from uploader.errors import CorruptError, SettingsError, StartRefused
from wmtp.model.hf_io import save_llama
from wmtp.model.llama import ModelConfig
from wmtp.model.mtp import MTPModel

RHO1 = "train.algo=rho1-wmtp"
CRITIC = "train.algo=critic-wmtp"


@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param(["train.algo=baseline-mtp"], id="baseline-mtp"),
        pytest.param(["train.algo=rho1-weighted"], id="rho1-weighted"),
        pytest.param(["train.algo=rho1-tokenskip"], id="rho1-tokenskip"),
        pytest.param([RHO1, "loss.rho1.selection_mode=tokenskip"], id="rho1-wmtp"),
        pytest.param([CRITIC, "loss.critic.stage1_steps=11"], id="critic-in-stage-1"),
        pytest.param([CRITIC, "loss.critic.stage1_steps=9"], id="critic-stage-2-begins-after"),
        pytest.param([CRITIC, "loss.critic.stage1_steps=6"], id="critic-at-the-border"),
        pytest.param([CRITIC, "loss.critic.stage1_steps=3"], id="critic-in-stage-2"),
    ],
)
def test_n_and_n_more_steps_equal_2n_bit_for_bit(
    train: Train, reference: str, tmp_path: Path, overrides: list[str]
) -> None:
    whole = train("whole", reference, *overrides)
    again = train("again", reference, *overrides, resume="./checkpoints/whole/step_6")
    assert [line["step"] for line in again] == list(range(7, 13))
    assert again == whole[6:]
    assert files_of(tmp_path / "checkpoints/again/step_12") == files_of(
        tmp_path / "checkpoints/whole/step_12"
    )


def test_rho1_wmtp_means_weighted(train: Train, reference: str) -> None:
    assert train("one", RHO1, reference) == train("other", "train.algo=rho1-weighted", reference)
    skipping = train("third", RHO1, reference, "loss.rho1.selection_mode=tokenskip")
    assert skipping == train("fourth", "train.algo=rho1-tokenskip", reference)


def test_the_critic_freezes_the_model_in_stage_1_and_trains_it_in_stage_2(
    train: Train, reference: str
) -> None:
    lines = train("critic", CRITIC, reference, "loss.critic.stage1_steps=6", "model.dropout=0")
    assert [line["stage"] for line in lines] == [1] * 6 + [2] * 6
    assert [line["grad_norm"] > 0 for line in lines] == [False] * 6 + [True] * 6
    assert lines[5]["value_loss"] < lines[0]["value_loss"]
    baseline = train("baseline", "model.dropout=0")
    assert [line["lr"] for line in lines[6:]] != [line["lr"] for line in baseline[6:]]
    assert lines[6]["lr"] == pytest.approx(1e-3)  # six steps of training have no warm-up


def test_tokenskip_keeps_its_share_and_weights_have_mean_1(train: Train, reference: str) -> None:
    targets = 4 * 16 * 2
    for line in train("skip", "train.algo=rho1-tokenskip", reference):
        assert line["kept"] * targets == pytest.approx(-(-7 * targets // 10))
    for line in train("weigh", "train.algo=rho1-weighted", reference):
        assert line["weight_mean"] == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize(
    ("overrides", "subject", "says"),
    [
        ([RHO1], "paths.models.ref", "set it, to the directory of a model"),
        ([CRITIC], "paths.models.rm", "or paths.models.ref"),
        ([RHO1, "paths.models.ref=./nowhere"], "paths.models.ref", "there is no"),
        ([RHO1, "paths.models.ref=./text"], "paths.models.ref", "name step_N/ of a run"),
        ([RHO1, "paths.models.ref=./checkpoints/reference"], "paths.models.ref", "did you mean"),
        ([CRITIC, "loss.critic.stage1_steps=12"], "loss.critic.stage1_steps", "leave none of 12"),
        (["data.sequence_length=2000"], "data.sequence_length", "raise model.max_sequence_length"),
        ([RHO1, "data.sequence_length=64", "model.max_sequence_length=64"], "paths.models.ref", "lower data"),
    ],
)
def test_what_is_missing_or_does_not_fit_is_found_before_the_first_step(
    train: Train, tmp_path: Path, overrides: list[str], subject: str, says: str
) -> None:
    train("reference", "model.max_sequence_length=64")
    named = any(one.startswith("paths.models") for one in overrides) or overrides in ([RHO1], [CRITIC])
    reference = [] if named else ["paths.models.ref=./checkpoints/reference/step_12"]
    with pytest.raises(SettingsError) as caught:
        train("refused", *reference, *overrides)
    assert caught.value.subject.startswith(subject)
    assert says in str(caught.value)
    assert not (tmp_path / "checkpoints/refused").exists()


def export(directory: Path, *, reward: bool = False, **shape: int) -> None:
    """A Hugging Face directory without a tokenizer, of a language model or a reward model."""
    sizes = {"vocab_size": 264, "hidden_size": 16, "intermediate_size": 24, "attention_heads": 2, "heads": 1}
    save_llama(MTPModel.from_settings(ModelConfig(**{**sizes, **shape}), seed=3), directory)
    if reward:
        weights, path = load_file(directory / "model.safetensors"), directory / "config.json"
        del weights["lm_head.weight"]
        score = torch.randn(1, 16, generator=torch.Generator().manual_seed(0))
        save_file({**weights, "score.weight": score}, directory / "model.safetensors")
        config = json.loads(path.read_text())
        named = {"architectures": ["LlamaForSequenceClassification"], "id2label": {"0": "LABEL_0"}}
        path.write_text(json.dumps(config | named))


def test_a_hugging_face_directory_is_a_reference(train: Train, tmp_path: Path) -> None:
    export(tmp_path / "hf")
    lines = train("run", RHO1, "paths.models.ref=./hf")
    assert all(line["weight_mean"] == pytest.approx(1.0, abs=1e-6) for line in lines)


def test_a_reward_model_comes_before_the_reference(train: Train, reference: str, tmp_path: Path) -> None:
    export(tmp_path / "rm", reward=True)
    rewarded = train("rewarded", CRITIC, "paths.models.rm=./rm")
    assert train("both", CRITIC, "paths.models.rm=./rm", reference) == rewarded
    likely = train("likely", CRITIC, reference)
    assert likely[0]["value_loss"] != rewarded[0]["value_loss"]
    again = train("again", CRITIC, "paths.models.rm=./rm", resume="./checkpoints/rewarded/step_6")
    assert again == rewarded[6:]


@pytest.mark.parametrize(
    ("override", "key", "reward"), [(RHO1, "ref", False), (CRITIC, "ref", False), (CRITIC, "rm", True)]
)
def test_another_vocabulary_is_refused(
    train: Train, tmp_path: Path, override: str, key: str, reward: bool
) -> None:
    export(tmp_path / "other", reward=reward, vocab_size=300)
    with pytest.raises(SettingsError, match="has 300 tokens, that of the model being trained 264") as caught:
        train("refused", override, f"paths.models.{key}=./other")
    assert caught.value.subject == f"paths.models.{key}"


def test_a_base_of_another_vocabulary_or_too_short_is_refused(train: Train, tmp_path: Path) -> None:
    export(tmp_path / "base", max_sequence_length=16)
    train("trained", "paths.models.base=./base")
    with pytest.raises(SettingsError, match=r"data\.sequence_length: 17 is more than the model's 16"):
        train("refused", "paths.models.base=./base", "data.sequence_length=17")
    export(tmp_path / "small", vocab_size=200)
    with pytest.raises(SettingsError, match="tokenizer"):
        train("refused", "paths.models.base=./small", "data.tokenizer=bytes")


def test_a_base_begins_with_its_own_weights_and_copies_of_its_head(train: Train, tmp_path: Path) -> None:
    export(tmp_path / "base")
    first = train("run", "paths.models.base=./base", "optim.learning_rate=1e-9", "model.dropout=0")[0]
    assert first["heads"][0] != pytest.approx(first["heads"][1], abs=1e-6)
    settings = ["model.heads=1", "model.dropout=0", "paths.models.base=./base", "optim.learning_rate=1e-9"]
    alone = train("alone", *settings)[0]
    assert alone["heads"][0] == pytest.approx(first["heads"][0], abs=1e-5)


def test_what_changed_since_the_checkpoint_is_told(
    train: Train, reference: str, capsys: pytest.CaptureFixture[str]
) -> None:
    train("one", "train.algo=rho1-weighted", reference)
    train("other", "train.algo=rho1-tokenskip", reference, resume="./checkpoints/one/step_6")
    assert (
        "changed since the checkpoint: train.algo rho1-weighted -> rho1-tokenskip" in capsys.readouterr().out
    )


def test_a_run_without_a_critic_does_not_go_on_from_one_with(train: Train, reference: str) -> None:
    train("critic", CRITIC, reference)
    with pytest.raises(StartRefused, match=r"optimizer: the checkpoint has \['main', 'value'\], this run"):
        train("baseline", resume="./checkpoints/critic/step_6")


def test_a_damaged_reference_is_named(train: Train, reference: str, tmp_path: Path) -> None:
    [shard] = (tmp_path / "checkpoints/reference/step_12").glob("model-*.safetensors")
    shard.write_bytes(shard.read_bytes()[:-1] + b"\xff")
    with pytest.raises(CorruptError, match=r"model-rank00000-0001\.safetensors: .* differ from the record"):
        train("refused", RHO1, reference)
