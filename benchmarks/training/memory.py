"""Peak memory of a step, heads one by one and all at once: ``python -m benchmarks.training.memory``.

Each measurement has a process of its own. Heads one by one take what one head takes, O(V + d): more of them
must not add what logits are worth. A second table is that of deeper trunks, whose activations are kept or,
with ``devices.activation_checkpointing``, computed again. Tables and whether that holds go to ``memory.md``.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from benchmarks import machine
from benchmarks.report import markdown
from wmtp.data.dataset import Batch
from wmtp.model.llama import ModelConfig
from wmtp.model.mtp import MTPModel
from wmtp.objectives.baseline import cross_entropy, uniform_weights
from wmtp.training.step import forward_backward, score

HERE = Path("benchmarks/training")
VOCABULARY, LENGTH, BATCH = 32_000, 256, 4
LOGITS_BYTES = BATCH * LENGTH * VOCABULARY * 4
"""Of one head."""


def sequential(model: MTPModel, batch: Batch) -> None:
    """As training does it."""
    weights = uniform_weights(batch.labels >= 0)
    forward_backward(model, batch, weights, weights.sum())


def weighted(model: MTPModel, batch: Batch) -> None:
    """With weights that need all heads' losses beforehand."""
    weights = score(model, batch).clamp(max=1)
    forward_backward(model, batch, weights, weights.sum())


def recomputed(model: MTPModel, batch: Batch) -> None:
    """As training does it with ``devices.activation_checkpointing``."""
    for block in model.blocks():
        block.recompute = True
    sequential(model, batch)


def joint(model: MTPModel, batch: Batch) -> None:
    """All logits, then one backward."""
    logits = model(batch.ids)
    heads = range(model.config.heads)
    losses = [cross_entropy(logits[:, :, k], batch.labels[..., k]).mean() for k in heads]
    torch.stack(losses).mean().backward()


MODES: dict[str, Callable[[MTPModel, Batch], None]] = {
    "sequential": sequential,
    "sequential, weighted": weighted,
    "sequential, recomputed": recomputed,
    "joint": joint,
}
ONE_BY_ONE = ("sequential", "sequential, weighted", "sequential, recomputed")
"""The modes that must not grow with the number of heads."""
DEPTHS = (2, 8, 32)
"""Layers of the trunk."""


def measure(mode: str, heads: int, layers: int = DEPTHS[0]) -> int:
    """Bytes that one step's forward and backward take at most, beyond model, gradients and batch."""
    config = ModelConfig(
        vocab_size=VOCABULARY, hidden_size=256, intermediate_size=512, trunk_layers=layers, heads=heads
    )
    model = MTPModel.from_settings(config, seed=0)
    draw = torch.Generator().manual_seed(0)
    text = torch.randint(0, VOCABULARY, (BATCH, LENGTH + heads), generator=draw)
    batch = Batch(text, text[:, 1:].unfold(1, heads, 1).contiguous(), torch.arange(BATCH))
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)
    before = memory_bytes("VmRSS")
    MODES[mode](model, batch)
    return memory_bytes("VmHWM") - before


def memory_bytes(field: str) -> int:
    """Of this process, by the kernel: ``VmRSS`` is what is resident, ``VmHWM`` the most that ever was."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def elsewhere(mode: str, heads: int, layers: int = DEPTHS[0]) -> int:
    """``measure`` in a process of its own."""
    words = [sys.executable, "-m", "benchmarks.training.memory", "--one", mode, str(heads), str(layers)]
    return int(json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout))


def per_head(peaks: Mapping[int, int]) -> float:
    """What each further head adds, in logits of one head: peak bytes by number of heads, two at least."""
    fewest, most = min(peaks), max(peaks)
    return (peaks[most] - peaks[fewest]) / (most - fewest) / LOGITS_BYTES


def table(found: Mapping[str, Mapping[int, int]]) -> str:
    """One row a mode, one column a number of heads: peak bytes by mode and by heads."""
    heads = list(next(iter(found.values())))
    cells = [["peak MB of a step", *(f"H = {number}" for number in heads), "each head more, in logits"]]
    cells += [
        [mode, *(f"{peaks[number] / 1e6:,.0f}" for number in heads), f"{per_head(peaks):.2f}"]
        for mode, peaks in found.items()
    ]
    return markdown(cells)


def by_depth(found: Mapping[str, Mapping[int, int]]) -> str:
    """One row a mode, one column a number of layers: peak bytes by mode and by layers."""
    cells = [["peak MB of a step, H = 1", *(f"{layers} layers" for layers in next(iter(found.values())))]]
    cells += [[mode, *(f"{peak / 1e6:,.0f}" for peak in peaks.values())] for mode, peaks in found.items()]
    return markdown(cells)


def grows(found: Mapping[str, Mapping[int, int]]) -> list[str]:
    """The modes that hold the logits of more than one head, although they were not to."""
    return [mode for mode in ONE_BY_ONE if mode in found and per_head(found[mode]) > 0.5]


def report(heads: Sequence[int]) -> tuple[str, list[str]]:
    """Everything measured, in Markdown, and the modes that grow."""
    found = {mode: {number: elsewhere(mode, number) for number in heads} for mode in MODES}
    about = f"{BATCH} × {LENGTH} tokens, V = {VOCABULARY:,}: the logits of one head are "
    about += f"{LOGITS_BYTES / 1e6:,.0f} MB"
    growing = grows(found)
    ending = f"grows with the number of heads: {', '.join(growing) or 'none of the sequential ones'}"
    headline = machine.headline(machine.describe())
    deep = {
        mode: {layers: elsewhere(mode, 1, layers) for layers in DEPTHS}
        for mode in ("sequential", "sequential, recomputed")
    }
    parts = [f"```\n{headline}\n```", about, table(found), ending, by_depth(deep)]
    return "\n\n".join(parts), growing


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--one", nargs=3, metavar=("MODE", "HEADS", "LAYERS"), help="measure here, and print the bytes"
    )
    parser.add_argument("--heads", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--into", type=Path, default=HERE, help="where memory.md goes")
    options = parser.parse_args()
    if options.one:
        mode, heads, layers = options.one
        print(measure(mode, int(heads), int(layers)))
        return 0
    text, growing = report(options.heads)
    options.into.mkdir(parents=True, exist_ok=True)
    (options.into / "memory.md").write_text(text + "\n")
    print(text)
    return 1 if growing else 0


if __name__ == "__main__":
    sys.exit(main())
