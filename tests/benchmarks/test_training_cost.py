"""Tokens a second and memory of a step: figures by hand, and one tiny run of each."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from benchmarks.training import memory, nanogpt, tokens

CLOCK_S = [
    {"nanogpt": 1.0, "plain loop": 1.0, "wmtp": 1.25, "wmtp, saving": 2.0},
    {"nanogpt": 1.0, "plain loop": 2.0, "wmtp": 2.0, "wmtp, saving": 2.0},
    {"nanogpt": 2.0, "plain loop": 1.0, "wmtp": 2.0, "wmtp, saving": 1.0},
]
CPU_S = {"nanogpt": 0.5, "plain loop": 0.5, "wmtp": 0.5, "wmtp, saving": 0.6}
ROUNDS = [{name: tokens.Spent(clock_s, CPU_S[name]) for name, clock_s in one.items()} for one in CLOCK_S]


def test_each_block_is_compared_with_those_of_its_own_round() -> None:
    found = {row.name: row for row in tokens.rows(ROUNDS, 100)}
    ours = found["wmtp"]
    assert (ours.tokens_per_s, ours.of_loop, ours.lowest, ours.highest) == (50, 0.8, 0.5, 1.0)
    assert (ours.of_nanogpt, ours.of_loop_cpu, ours.of_nanogpt_cpu) == (0.8, 1.0, 1.0)
    assert (found["nanogpt"].of_nanogpt, found["plain loop"].of_loop) == (1.0, 1.0)
    assert tokens.too_slow(list(found.values())) == ["wmtp, saving"]
    assert "| wmtp " in tokens.table("tiny", list(found.values()))


def test_the_whole_trainer_beside_plain_loops(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog. " * 99)
    shape = {
        "hidden_size": 16,
        "intermediate_size": 48,
        "attention_heads": 2,
        "kv_heads": 1,
        "trunk_layers": 1,
    }
    data = {"train": str(tmp_path / "text.txt"), "sequence_length": 16, "batch_size": 2}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"model": shape, "data": data}))
    state = torch.get_rng_state()
    found, about = tokens.measure(
        tokens.Size("tiny", (), 2), 2, tmp_path / "recipe.yaml", (f"paths.cache={tmp_path}/cache",)
    )
    torch.set_rng_state(state)
    assert [row.name for row in found] == ["nanogpt", "plain loop", "wmtp", "wmtp, saving"]
    assert all(row.tokens_per_s > 0 for row in found)
    assert "batches of 2 × 16 tokens, 2 rounds of 2 steps; 0.01 M parameters, nanogpt 0.01 M" in about


def test_a_layer_of_nanogpt_has_as_many_weights_as_one_of_ours() -> None:
    from wmtp.model.llama import Block, ModelConfig

    theirs, ours = nanogpt.Layer(128, 4), Block(ModelConfig())
    assert sum(w.numel() for w in theirs.parameters()) == sum(w.numel() for w in ours.parameters())


def test_the_plain_loop_learns() -> None:
    state = torch.get_rng_state()
    torch.manual_seed(0)
    model = nanogpt.GPT(8, length=8, width=16, layers=1, heads=2)
    text = (np.arange(200) % 8).astype(np.uint16)
    nanogpt.loop(model, model, text, (8, 8))(200)
    ids = torch.arange(8)[None]
    with torch.no_grad():
        nats = torch.nn.functional.cross_entropy(model(ids)[0, :-1], ids[0, 1:]).item()
    torch.set_rng_state(state)
    assert nats < 0.5 * math.log(8)


def test_memory_that_grows_with_heads_is_told() -> None:
    logits = memory.LOGITS_BYTES
    flat, steep = {1: 3 * logits, 5: 3 * logits + logits // 10}, {1: 3 * logits, 5: 11 * logits}
    assert memory.per_head(flat) == pytest.approx(0.025) and memory.per_head(steep) == 2
    assert memory.grows({"sequential": flat, "sequential, weighted": steep, "joint": steep}) == [
        "sequential, weighted"
    ]
    last = memory.table({"sequential": flat, "joint": steep}).splitlines()[-1]
    assert last.split("|")[-2].strip() == "2.00"


@pytest.mark.parametrize("mode", memory.MODES)
def test_a_step_of_every_mode_can_be_measured(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("VOCABULARY", 500), ("LENGTH", 8), ("BATCH", 1)):
        monkeypatch.setattr(memory, name, value)
    assert memory.measure(mode, 2) >= 0
    assert memory.memory_bytes("VmHWM") >= memory.memory_bytes("VmRSS") > 0
