"""The command line. Nothing heavy is imported before a command needs it: `--help` and `list` answer at once."""

import sys
import warnings
from typing import Annotated

import typer

from gradmem_bench import __version__
from gradmem_bench.commands import leaderboard
from gradmem_bench.commands.check import check
from gradmem_bench.commands.compare import compare
from gradmem_bench.commands.listing import list_entries, show
from gradmem_bench.commands.lm_eval import lm_eval, tasks_dir
from gradmem_bench.commands.plot import plot
from gradmem_bench.commands.pretrain import pretrain
from gradmem_bench.commands.profile import profile
from gradmem_bench.commands.reproduce import reproduce
from gradmem_bench.commands.run import run
from gradmem_bench.errors import Notice, UserError

app = typer.Typer(
    name="gradmem-bench",
    help="Which memory for language models is worth its bytes?",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=False,
)
for command in (run, reproduce, profile, pretrain, compare, plot):
    app.command()(command)
app.add_typer(leaderboard.app)
app.command("list")(list_entries)
for command in (show, check, tasks_dir):
    app.command()(command)
# Its arguments are lm-eval's, --help too.
anything = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
app.command(context_settings=anything)(lm_eval)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """gradmem-bench."""


def main() -> None:
    """The entry point: a user's mistake is one sentence and exit code 2, never a traceback."""
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _warned
            app()
    except UserError as error:
        from rich.console import Console
        from rich.markup import escape

        Console(stderr=True).print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True, highlight=False)
        raise SystemExit(2) from None
    except SystemExit as end:
        # Typer makes this code of Ctrl-C, without a word.
        if end.code == 130:
            sys.stderr.write("interrupted; the same command goes on from the last checkpoint, where there is one\n")
        raise


def _warned(message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: object) -> None:
    if issubclass(category, Notice):
        sys.stderr.write(f"warning: {message}\n")
    else:
        sys.stderr.write(warnings.formatwarning(message, category, filename, lineno))
