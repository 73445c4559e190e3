"""``wmtp eval``: what a checkpoint is worth on held-out text, and how far its heads shorten decoding.

With ``--json`` one object: ``run``, ``step``, ``source``; ``ema``, whether of averaged weights; ``heads``,
each with ``cross_entropy`` (nats a target) and ``accuracy``; ``bits_per_byte`` (of head 0); ``targets`` (of
head 0); ``decoding`` (null where none was asked for) with ``prompts``, ``tokens``, ``passes``,
``tokens_per_pass`` and ``accepted``, the share of its drafts that was kept for each head from the second on.
"""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wmtp.cli.access import JsonOption
from wmtp.cli.checkpoints import EmaOption, RunArgument, StepArgument
from wmtp.cli.reporting import one_line_errors

if TYPE_CHECKING:
    from wmtp.data.dataset import Batches
    from wmtp.eval.opened import Opened
    from wmtp.settings import Resolved


def register(app: typer.Typer) -> None:
    app.command("eval", short_help="Measure a checkpoint on held-out text.")(evaluate)


@one_line_errors
def evaluate(
    run: RunArgument,
    step: StepArgument = None,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="Config the run was trained with.", metavar="FILE")
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option("--recipe", "-r", help="Recipe it was trained with.", metavar="FILE")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a setting; repeatable.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="Measure on all of this text, not the run's held-out part.", metavar="WHAT"),
    ] = None,
    samples: Annotated[
        int | None, typer.Option(min=1, help="Windows to measure on; default: all.", metavar="N")
    ] = None,
    prompts: Annotated[int, typer.Option(min=0, help="Prompts to decode after.", metavar="N")] = 8,
    tokens: Annotated[int, typer.Option(min=0, help="Tokens to decode after each.", metavar="N")] = 64,
    ema: EmaOption = False,
    as_json: JsonOption = False,
) -> None:
    """Measure a step, the latest if none is named: loss and accuracy of each head, bits a byte.

    The text is what the run held out, which its config and recipe name. Then some of it is
    continued greedily, with the further heads as drafts: the tokens are those of plain decoding.
    """
    import dataclasses

    import torch

    from wmtp.cli.opening import open_step
    from wmtp.eval.report import measure
    from wmtp.settings import Flags, load_settings
    from wmtp.store_access import reachable

    wanted = list(overrides or []) + ([] if data is None else [f"data.train={data}"])
    settings = load_settings(config, recipe, wanted, Flags(), os.environ, Path.cwd())
    opened = open_step(run, step, config, settings.cache, quiet=as_json, averaged=ema)
    with reachable(settings.storage, settings.dev_s3, settings.location.bucket) as (storage, _):
        settings = dataclasses.replace(settings, storage=storage)
        batches = _batches(opened, settings, held_out=data is None)
    on_cuda = settings.config.devices.device != "cpu" and torch.cuda.is_available()
    report = measure(
        opened.model.to("cuda" if on_cuda else "cpu"),
        batches,
        batch_size=settings.recipe.data.batch_size,
        samples=samples,
        prompts=prompts,
        tokens=tokens,
        bytes_per_token=batches.packed.bytes_per_token,
    )
    found = {"run": run, "step": opened.step, "source": opened.source, "ema": ema, **report.as_json()}
    if as_json:
        print(json.dumps(found))
    else:
        _print(found)


def _batches(opened: "Opened", settings: "Resolved", *, held_out: bool) -> "Batches":
    """The run's held-out windows, cut as the run cut them; or all of another text."""
    from uploader.errors import SettingsError
    from wmtp.data.dataset import split
    from wmtp.data.packed import PackedTokens
    from wmtp.training.sources import open_data, open_tokenizer

    tokenizer = open_tokenizer(settings)
    if tokenizer.name != opened.tokenizer:
        hint = "set data.tokenizer as the run had it"
        problem = f"it is {tokenizer.name}, that of the run {opened.tokenizer}"
        raise SettingsError(problem, subject="data.tokenizer", hint=hint)
    packed = PackedTokens.open(open_data(settings), tokenizer, settings.cache)
    was: dict[str, Any] = opened.about.get("data", {})
    if held_out and was.get("tokens") != packed.fingerprint:
        raise SettingsError(
            "this is not the text that the run was trained on: what it held out is not known",
            subject="data.train",
            hint="name the run's --config and --recipe, or other text with --data",
        )
    kept, held = split(
        packed,
        sequence_length=was.get("sequence_length", settings.recipe.data.sequence_length),
        heads=opened.model.config.heads,
        seed=0,  # nothing is shuffled
        held_out_fraction=was.get("validation_fraction", 0) if held_out else 0,
    )
    return held if held_out else kept


def _print(found: dict[str, Any]) -> None:
    print(f"step_{found['step']} from {found['source']}{', averaged weights' if found['ema'] else ''}")
    for k, head in enumerate(found["heads"]):
        print(f"  head {k}   {head['cross_entropy']:.4f} nats, {100 * head['accuracy']:.1f} % right")
    print(f"  {found['bits_per_byte']:.4f} bits a byte, over {found['targets']} tokens")
    if (decoding := found["decoding"]) is not None:
        accepted = "/".join(f"{100 * share:.0f}" for share in decoding["accepted"])
        kept = f"; drafts kept {accepted} %" if accepted else ""
        print(
            f"  greedy decoding, equal to plain: {decoding['tokens_per_pass']:.2f} tokens a pass "
            f"({decoding['tokens']} in {decoding['passes']}){kept}"
        )
