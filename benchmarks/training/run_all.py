"""All algorithms on one small model and text: ``python -m benchmarks.training.run_all``.

First a reference model, then each algorithm with it, from the same weights and on the same samples. Leaves
curves, a table and the numbers, and fails if an algorithm doesn't do what it promises: losses fall, heads are
ordered, token skipping keeps its share, weights have mean 1.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.report import markdown

ALGORITHMS = ("baseline-mtp", "rho1-weighted", "rho1-tokenskip", "critic-wmtp")
REFERENCE = "reference"
COLUMNS = (
    "algorithm", "held-out nats, head by head", "bits a byte", "head 0, first → last tenth", "mean weight",
    "largest", "kept", "value MSE in stage 1", "CPU time / baseline", "problems",
)  # fmt: skip
KEEP_RATIO = 0.7
"""The recipe's: ``loss.rho1.keep_ratio``."""
CURVES = ("step", "stage", "heads", "value_loss", "weight_mean", "weight_max", "kept")
"""Of a run's metrics what ``metrics.json`` keeps: what picture and table are made of."""

HERE = Path("benchmarks/training")
RUNS = Path("checkpoints/train-all")

Line = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """One finished run.

    Attributes:
        lines: its metrics, one entry a step.
        held_out: nats of each head on held-out text.
    """

    name: str
    lines: list[Line]
    held_out: list[float]
    bits_per_byte: float
    cpu_s: float

    @property
    def trained(self) -> list[Line]:
        """The steps in which the model itself was trained: not those of the critic's first stage."""
        return [line for line in self.lines if "heads" in line]

    def nats(self, tenth: int) -> float:
        """Mean of head 0 over a tenth of the steps."""
        return tenth_of([line["heads"][0] for line in self.trained], tenth)

    def problems(self) -> list[str]:
        """What the run was to show and does not."""
        wrong = []
        if self.held_out != sorted(self.held_out):
            wrong.append("a head further ahead has a lower loss than one before it")
        if self.nats(-1) >= self.nats(0):
            wrong.append("the loss of head 0 did not fall")
        weighted = [line for line in self.trained if "weight_mean" in line]
        if self.name == "rho1-tokenskip":
            if any(not 0 <= line["kept"] - KEEP_RATIO < 0.01 for line in weighted):
                wrong.append(f"not {KEEP_RATIO} of the targets were kept, rounded up")
        elif any(abs(line["weight_mean"] - 1) > 1e-3 for line in weighted):
            wrong.append("weights have not the mean 1")
        fitted = [line["value_loss"] for line in self.lines if line.get("stage") == 1]
        if fitted and tenth_of(fitted, -1) >= tenth_of(fitted, 0):
            wrong.append("the value's error did not fall in stage 1")
        return wrong


def tenth_of(values: Sequence[float], tenth: int) -> float:
    """Mean of the first (0) or last (−1) tenth of the values."""
    size = max(1, len(values) // 10)
    return statistics.fmean(values[:size] if tenth == 0 else values[-size:])


def train(name: str, steps: int, runs: Path, recipe: Path, *overrides: str) -> float:
    """One ``wmtp train``; its seconds of the processor, start and end included."""
    fixed = [f"paths.checkpoints.base_path={runs}", f"paths.checkpoints.save_interval={steps}", *overrides]
    words = [sys.executable, "-m", "wmtp", "train", "--recipe", str(recipe), "--fresh", "--run-name", name]
    words += ["--max-steps", str(steps), *(word for one in fixed for word in ("--set", one))]
    before_s = _children_cpu_s()
    subprocess.run(words, check=True)
    return _children_cpu_s() - before_s


def _children_cpu_s() -> float:
    """Of all processes that were waited for: the clock says little on a machine that does other things."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def finished(name: str, steps: int, runs: Path, recipe: Path, cpu_s: float) -> Run:
    """Read a run's metrics, and measure its last checkpoint on held-out text."""
    from wmtp.model.pretrained import open_pretrained
    from wmtp.settings import Flags, load_settings
    from wmtp.training.setup import build
    from wmtp.training.step import evaluate

    setup = build(load_settings(None, recipe, [], Flags(max_steps=steps), {}, Path.cwd()))
    model = open_pretrained(runs / name / f"step_{steps}", field=name).model
    result = evaluate(
        model, setup.held_out.in_order(8, max_samples=512), bytes_per_token=setup.bytes_per_token
    )
    lines = [json.loads(line) for line in (runs / name / "metrics.jsonl").read_text().splitlines()]
    return Run(name, lines, list(result.cross_entropies), result.bits_per_byte, cpu_s)


def table(runs: Sequence[Run]) -> str:
    """One row a run, in Markdown."""
    base_s = runs[0].cpu_s
    rows = [list(COLUMNS)]
    for run in runs:
        last = run.trained[-1]
        fitted = [line["value_loss"] for line in run.lines if line.get("stage") == 1]
        rows.append([
            run.name,
            " / ".join(f"{nats:.3f}" for nats in run.held_out),
            f"{run.bits_per_byte:.3f}",
            f"{run.nats(0):.2f} → {run.nats(-1):.2f}",
            f"{last['weight_mean']:.4f}" if "weight_mean" in last else "1",
            f"{last['weight_max']:.2f}" if "weight_max" in last else "1",
            f"{last['kept']:.4f}" if "kept" in last else "1",
            f"{tenth_of(fitted, 0):,.0f} → {tenth_of(fitted, -1):,.0f}" if fitted else "–",
            f"{run.cpu_s / base_s:.2f}",
            "; ".join(run.problems()) or "none",
        ])  # fmt: skip
    return markdown(rows)


def picture(runs: Sequence[Run], path: Path) -> None:
    """The unweighted loss of each head over steps, smoothed, one panel a head; then the value's error."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    heads = len(runs[0].held_out)
    figure, axes = plt.subplots(1, heads + 1, figsize=(4 * (heads + 1), 4), squeeze=False)
    for k, axis in enumerate(axes[0, :heads]):
        for run in runs:
            steps = [line["step"] for line in run.trained]
            axis.plot(steps, smooth([line["heads"][k] for line in run.trained]), label=run.name, linewidth=1)
        axis.set_title(f"head {k}: the token {k + 1} ahead", fontsize=9)
        axis.set_ylabel("nats a target")
    for number, run in enumerate(runs):
        valued = [line for line in run.lines if "value_loss" in line]
        if valued:
            errors = smooth([line["value_loss"] for line in valued])
            axes[0, heads].plot([line["step"] for line in valued], errors, color=f"C{number}", linewidth=1)
    axes[0, heads].set_title("mean squared error of the value", fontsize=9)
    axes[0, 0].legend(fontsize=7)
    for axis in axes[0]:
        axis.set_xlabel("step")
        axis.tick_params(labelsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def smooth(values: Sequence[float], span: int = 20) -> list[float]:
    """Each value's mean with those before it, ``span`` at most."""
    return [statistics.fmean(values[max(0, at - span + 1) : at + 1]) for at in range(len(values))]


def curves(run: Run) -> dict[str, list[Any]]:
    """A column for each metric, to four digits; None in the steps that have it not."""
    return {name: [_short(line.get(name)) for line in run.lines] for name in CURVES}


def _short(value: Any) -> Any:
    if isinstance(value, list):
        return [_short(one) for one in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--steps", type=int, default=400, help="of each algorithm; the reference has twice as many"
    )
    parser.add_argument("--recipe", type=Path, default=Path("configs/recipe.yaml"))
    parser.add_argument("--runs", type=Path, default=RUNS, help="where the checkpoints go")
    parser.add_argument("--into", type=Path, default=HERE, help="where table, picture and numbers go")
    options = parser.parse_args()
    steps = options.steps
    train(REFERENCE, 2 * steps, options.runs, options.recipe, "model.heads=1", "seed=7")
    reference = f"paths.models.ref={options.runs / REFERENCE / f'step_{2 * steps}'}"
    runs = []
    for name in ALGORITHMS:
        cpu_s = train(name, steps, options.runs, options.recipe, f"train.algo={name}", reference)
        runs.append(finished(name, steps, options.runs, options.recipe, cpu_s))
    options.into.mkdir(parents=True, exist_ok=True)
    about = machine.describe()
    shown = table(runs)
    (options.into / "table.md").write_text(f"```\n{machine.headline(about)}\n```\n\n{shown}\n")
    numbers = {"machine": about, "steps": steps, "runs": {run.name: curves(run) for run in runs}}
    (options.into / "metrics.json").write_text(json.dumps(numbers) + "\n")
    picture(runs, options.into / "curves.png")
    print(f"\n{machine.headline(about)}\n\n{shown}\n\nin {options.into}: table.md, curves.png, metrics.json")
    return 1 if any(run.problems() for run in runs) else 0


if __name__ == "__main__":
    sys.exit(main())
