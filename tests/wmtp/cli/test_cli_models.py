"""``wmtp export`` and ``wmtp eval`` of a real, small run."""

import json
import math
from pathlib import Path
from typing import Any

import anyio
import pytest
import torch
import yaml
from cli_runs import as_json, one_error, start_wmtp, wmtp
from transformers import AutoTokenizer, LlamaForCausalLM

from uploader.location import Location
from uploader.settings import StorageSettings
from uploader.store import open_store
from wmtp.eval.opened import open_checkpoint

RECIPE: dict[str, Any] = {
    "run": {"name": "tiny"},
    "train": {"max_steps": 120},
    "data": {"sequence_length": 32, "batch_size": 8, "validation_fraction": 0.1},
    "model": {
        "hidden_size": 32, "intermediate_size": 64, "trunk_layers": 1,
        "heads": 3, "attention_heads": 2, "kv_heads": 1,
    },
    "optim": {"learning_rate": 1e-2, "ema_decay": 0.9},
}  # fmt: skip


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a trained run, its config, its recipe and its text."""
    root = tmp_path_factory.mktemp("lab")
    text = "".join(f"line {n}: the quick brown fox jumps over the lazy dog\n" for n in range(1200))
    (root / "text.txt").write_text(text)
    recipe = {**RECIPE, "data": {**RECIPE["data"], "train": str(root / "text.txt")}}
    (root / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    checkpoints = {"base_path": str(root / "runs"), "save_interval": 60}
    paths = {"checkpoints": checkpoints, "cache": str(root / "cache")}
    (root / "config.yaml").write_text(yaml.safe_dump({"paths": paths}))
    process = start_wmtp("train", "-c", root / "config.yaml", "-r", root / "recipe.yaml")
    out, err = process.communicate(timeout=100)
    assert process.returncode == 0, out + err
    return root


def evaluated(lab: Path, *words: object) -> dict[str, Any]:
    files = ("-c", lab / "config.yaml", "-r", lab / "recipe.yaml")
    result = wmtp("eval", lab / "runs" / "tiny", *words, *files, "--json")
    assert result.exit_code == 0, result.stderr
    found: dict[str, Any] = as_json(result)
    return found


@torch.no_grad()
def test_what_is_exported_predicts_in_transformers_as_the_checkpoint_does(lab: Path, tmp_path: Path) -> None:
    result = wmtp("export", lab / "runs" / "tiny", "--hf", tmp_path / "hf")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith("step_120 from ")
    location = Location("", str(lab / "runs" / "tiny"))
    opened = open_checkpoint(location, StorageSettings(), tmp_path / "scratch", print)
    theirs = LlamaForCausalLM.from_pretrained(tmp_path / "hf").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    ids = tokenizer("line 7: the quick brown fox", return_tensors="pt")["input_ids"]
    assert ids[0].tolist() == [*b"line 7: the quick brown fox"]
    expected = opened.model(ids)[:, :, 0]
    torch.testing.assert_close(theirs(ids).logits, expected, rtol=1e-4, atol=1e-4)
    assert chr(int(expected[0, -1].argmax())) == " "
    assert [*(tmp_path / "scratch").iterdir()] == []


def test_an_earlier_step_in_another_type(lab: Path, tmp_path: Path) -> None:
    result = wmtp("export", lab / "runs/tiny/step_60", "--hf", tmp_path / "hf", "--dtype", "bfloat16")
    assert result.exit_code == 0, result.stderr
    assert LlamaForCausalLM.from_pretrained(tmp_path / "hf", dtype="auto").dtype == torch.bfloat16
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["n_future_tokens"] == 3


def test_an_exported_directory_can_be_trained_further(lab: Path, tmp_path: Path) -> None:
    assert wmtp("export", lab / "runs" / "tiny", "--hf", tmp_path / "hf").exit_code == 0
    words = [
        f"paths.models.base={tmp_path}/hf",
        "train.max_steps=1",
        "optim.ema_decay=null",
        f"paths.checkpoints.base_path={tmp_path}/runs",
    ]
    sets = [word for key in words for word in ("--set", key)]
    process = start_wmtp("train", "-c", lab / "config.yaml", "-r", lab / "recipe.yaml", *sets)
    out, err = process.communicate(timeout=100)
    assert process.returncode == 0, out + err
    first = json.loads((tmp_path / "runs/tiny/metrics.jsonl").read_text().splitlines()[0])
    assert sum(first["heads"]) < 0.5 * 3 * math.log(264)

    result = wmtp("export", tmp_path / "runs" / "tiny", "--hf", tmp_path / "averages", "--ema")
    assert result.exit_code == 2
    one_error(result, "step_1", "it holds no averaged weights", "optim.ema_decay", "--ema")


def test_eval_measures_the_held_out_part(lab: Path) -> None:
    found = evaluated(lab, "--prompts", 3, "--tokens", 40)
    assert (found["step"], found["source"]) == (120, str(lab / "runs/tiny/step_120"))
    nats = [head["cross_entropy"] for head in found["heads"]]
    assert len(nats) == 3 and nats == sorted(nats) and nats[0] < 1.0
    assert all(0.3 < head["accuracy"] <= 1 for head in found["heads"])
    assert found["bits_per_byte"] == pytest.approx(nats[0] / math.log(2), rel=1e-3)
    decoding = found["decoding"]
    assert (decoding["prompts"], decoding["tokens"]) == (3, 120)
    assert decoding["tokens_per_pass"] == 120 / decoding["passes"] > 1.2
    assert len(decoding["accepted"]) == 2 and all(0 < share <= 1 for share in decoding["accepted"])
    assert evaluated(lab, "step_60", "--prompts", 0)["decoding"] is None
    assert evaluated(lab, "step_60", "--prompts", 0)["bits_per_byte"] > found["bits_per_byte"]


def test_averaged_weights_are_measured_and_exported_where_they_are_asked_for(
    lab: Path, tmp_path: Path
) -> None:
    trained = evaluated(lab, "--prompts", 0)
    averaged = evaluated(lab, "--prompts", 0, "--ema")
    assert (trained["ema"], averaged["ema"]) == (False, True)
    assert averaged["bits_per_byte"] != trained["bits_per_byte"]
    assert averaged["bits_per_byte"] == pytest.approx(trained["bits_per_byte"], rel=0.2)

    result = wmtp("export", lab / "runs" / "tiny", "--hf", tmp_path / "hf", "--ema")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.splitlines()[0].endswith("step_120, averaged weights")
    location = Location("", str(lab / "runs" / "tiny"))
    opened = open_checkpoint(location, StorageSettings(), tmp_path / "scratch", print, averaged=True)
    theirs = LlamaForCausalLM.from_pretrained(tmp_path / "hf").get_input_embeddings().weight
    assert torch.equal(theirs, opened.model.embed_tokens.weight)


def test_eval_for_people(lab: Path) -> None:
    files = ("-c", lab / "config.yaml", "-r", lab / "recipe.yaml")
    lines = wmtp("eval", lab / "runs" / "tiny", *files, "--samples", 5, "--prompts", 1).stdout.splitlines()
    assert lines[0] == f"step_120 from {lab}/runs/tiny/step_120"
    assert [line.split()[:2] for line in lines[1:4]] == [["head", "0"], ["head", "1"], ["head", "2"]]
    assert "bits a byte, over 160 tokens" in lines[4]
    assert "equal to plain" in lines[5] and "tokens a pass" in lines[5]


def test_eval_on_other_text(lab: Path, tmp_path: Path) -> None:
    (tmp_path / "other.txt").write_text("completely different letters: JXQ ZKV" * 40)
    other = evaluated(lab, "--data", tmp_path / "other.txt", "--prompts", 0)
    assert other["bits_per_byte"] > evaluated(lab, "--prompts", 0)["bits_per_byte"] + 1
    files = ("-c", lab / "config.yaml", "-r", lab / "recipe.yaml")
    wrong = wmtp("eval", lab / "runs" / "tiny", *files, "--set", f"data.train={tmp_path}/other.txt")
    assert wrong.exit_code == 2
    one_error(wrong, "data.train", "not the text that the run was trained on", "--data")


def test_a_step_that_only_the_store_has(
    lab: Path, tmp_path: Path, s3_place: tuple[Location, StorageSettings]
) -> None:
    location, storage = s3_place

    async def upload() -> None:
        async with open_store(location, storage) as store:
            for path in sorted((lab / "runs" / "tiny").rglob("*")):
                if path.is_file() and not path.name.startswith("."):
                    await store.put(path.relative_to(lab / "runs").as_posix(), memoryview(path.read_bytes()))

    anyio.run(upload)
    opened = open_checkpoint(location.join("tiny").join("step_60"), storage, tmp_path / "scratch", print)
    assert opened.step == 60
    assert opened.source.startswith("s3://")
    here = open_checkpoint(Location("", str(lab / "runs/tiny/step_60")), storage, tmp_path / "scratch", print)
    for name, weight in here.model.state_dict().items():
        assert torch.equal(opened.model.state_dict()[name], weight)


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        ([], 2, ["--hf", "is missing"]),
        (["step_7", "--hf", "out"], 1, ["there is no step_7", "step_120"]),
        (["--hf", "."], 2, ["exporting to", "is not empty"]),
        (["--hf", "out", "--tokenizer", "no.json"], 2, ["--tokenizer", "no.json"]),
    ],
)
def test_export_errors(lab: Path, tmp_path: Path, words: list[str], code: int, says: list[str]) -> None:
    (tmp_path / "mine").touch()
    result = wmtp("export", lab / "runs" / "tiny", *words)
    assert result.exit_code == code
    one_error(result, *says)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
