"""Peak memory of a step, heads one by one and all at once: ``python -m benchmarks.training.memory``.

Each measurement has a process of its own, whose largest resident size is compared with that before the step.
"""

import argparse
import json
import resource
import subprocess
import sys
from collections.abc import Sequence

from benchmarks import machine
from benchmarks.report import markdown

MODES = ("sequential", "sequential, weighted", "joint")
VOCABULARY, LENGTH, BATCH = 32_000, 256, 4


def measure(mode: str, heads: int) -> int:
    """Bytes that one step's forward and backward take at most, beyond model, gradients and batch."""
    import torch

    from wmtp.data.dataset import Batch
    from wmtp.model.llama import ModelConfig
    from wmtp.model.mtp import MTPModel
    from wmtp.objectives.baseline import cross_entropy, uniform_weights
    from wmtp.training.step import forward_backward, score

    config = ModelConfig(vocab_size=VOCABULARY, hidden_size=256, intermediate_size=512, heads=heads)
    model = MTPModel.from_settings(config, seed=0)
    draw = torch.Generator().manual_seed(0)
    text = torch.randint(0, VOCABULARY, (BATCH, LENGTH + heads), generator=draw)
    batch = Batch(text, text[:, 1:].unfold(1, heads, 1).contiguous(), torch.arange(BATCH))
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)
    before = peak_bytes()
    weights = uniform_weights(batch.labels >= 0)
    if mode == "joint":
        logits = model(batch.ids)
        losses = [cross_entropy(logits[:, :, k], batch.labels[..., k]).mean() for k in range(heads)]
        torch.stack(losses).mean().backward()  # type: ignore[no-untyped-call]
    else:
        if mode == "sequential, weighted":
            weights = weights * score(model, batch).clamp(max=1)
        forward_backward(model, batch, weights, weights.sum())
    return peak_bytes() - before


def peak_bytes() -> int:
    """The largest resident size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def elsewhere(mode: str, heads: int) -> int:
    """``measure`` in a process of its own."""
    words = [sys.executable, "-m", "benchmarks.training.memory", "--one", mode, str(heads)]
    return int(json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout))


def table(heads: Sequence[int]) -> str:
    """One row a mode, one column a number of heads."""
    rows = [["peak MB of a step", *(f"H = {number}" for number in heads)]]
    rows += [[mode, *(f"{elsewhere(mode, number) / 1e6:,.0f}" for number in heads)] for mode in MODES]
    return markdown(rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--one", nargs=2, metavar=("MODE", "HEADS"), help="measure here, and print the bytes")
    parser.add_argument("--heads", type=int, nargs="+", default=[1, 2, 4, 8])
    options = parser.parse_args()
    if options.one:
        print(measure(options.one[0], int(options.one[1])))
        return
    logits_mb = BATCH * LENGTH * VOCABULARY * 4 / 1e6
    print(f"{machine.headline(machine.describe())}\n\nlogits of one head: {logits_mb:,.0f} MB\n")
    print(table(options.heads))


if __name__ == "__main__":
    main()
