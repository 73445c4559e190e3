"""The command ``wmtp``: one file a command, each imported only when it runs."""

import typer

app = typer.Typer(
    name="wmtp",
    help="Train weighted multi-token-prediction models; checkpoints reach S3 without the step waiting.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Run the command line."""
    from wmtp.cli import checkpoints, dev_s3, status, train, uploader

    for command in (train, uploader, checkpoints, status, dev_s3):
        command.register(app)
    app()
