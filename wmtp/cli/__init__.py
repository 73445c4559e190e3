"""The command ``wmtp``: one file a command, each of which imports what it needs only when it runs."""

import typer


def make_app() -> typer.Typer:
    """The command line with all its commands."""
    from wmtp.cli import checkpoints, dev_s3, eval, export, status, train, uploader

    app = typer.Typer(
        name="wmtp",
        help="Train weighted multi-token-prediction models; checkpoints reach S3 without the step waiting.",
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    for command in (train, uploader, checkpoints, status, eval, export, dev_s3):
        command.register(app)
    return app


def main() -> None:
    """Run the command line."""
    make_app()()
