"""``wmtp export``: a checkpoint as a Hugging Face directory."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from wmtp.cli.access import ConfigOption
from wmtp.cli.checkpoints import EmaOption, RunArgument, StepArgument
from wmtp.cli.reporting import one_line_errors

if TYPE_CHECKING:
    from wmtp.data.tokenizer import Tokenizer

Dtype = Literal["float32", "bfloat16", "float16"]


def register(app: typer.Typer) -> None:
    app.command("export", short_help="Write a checkpoint as a Hugging Face directory.")(export)


@one_line_errors
def export(
    run: RunArgument,
    step: StepArgument = None,
    hf: Annotated[
        Path | None, typer.Option("--hf", help="Directory to write; it must not be there yet.", metavar="DIR")
    ] = None,
    dtype: Annotated[Dtype, typer.Option(help="Type of the weights.")] = "float32",
    tokenizer: Annotated[
        Path | None,
        typer.Option(help="The run's tokenizer.json, where it was not bytes.", metavar="FILE"),
    ] = None,
    ema: EmaOption = False,
    config: ConfigOption = None,
) -> None:
    """Write a step, the latest if none is named, as a Hugging Face Llama directory.

    transformers loads the trunk and head 0, which predict the next token. The further heads are
    beside them as extra_heads, for this program to read: name the directory as paths.models.base.
    """
    import torch

    from uploader.errors import SettingsError
    from wmtp.cli.opening import open_step
    from wmtp.model.hf_io import require_empty, save_llama

    if hf is None:
        raise SettingsError("it is missing", subject="--hf", hint="name the directory to write: --hf DIR")
    target = hf.expanduser().absolute()
    require_empty(target)
    opened = open_step(run, step, config, target.parent, quiet=False, averaged=ema)
    chosen = _tokenizer(opened.tokenizer, tokenizer)
    ids = {"bos_token_id": chosen.bos_id, "eos_token_id": chosen.eos_id}
    save_llama(
        opened.model,
        target,
        dtype=getattr(torch, dtype),
        special={name: number for name, number in ids.items() if number is not None},
        extra_files=chosen.files(),
    )
    millions = opened.model.parameter_count() / 1e6
    print(f"step_{opened.step} from {opened.source}{', averaged weights' if ema else ''}")
    print(f"  {target}: {millions:.2f} M parameters in {dtype}, {opened.model.config.heads} heads")


def _tokenizer(name: str, path: Path | None) -> "Tokenizer":
    """The run's tokenizer: a checkpoint holds its name, not its file."""
    from uploader.errors import SettingsError
    from wmtp.data.tokenizer import ByteTokenizer
    from wmtp.data.tokenizer_file import FileTokenizer

    if path is None and name == ByteTokenizer.name:
        return ByteTokenizer()
    hint = "name the tokenizer.json that the run was trained with"
    if path is None:
        raise SettingsError(f"the run's tokenizer is {name}", subject="--tokenizer", hint=hint)
    tokenizer = FileTokenizer(path.expanduser(), field="--tokenizer")
    if tokenizer.name != name:
        problem = f"it is {tokenizer.name}, that of the run {name}"
        raise SettingsError(problem, subject=f"--tokenizer {path}", hint=hint)
    return tokenizer
