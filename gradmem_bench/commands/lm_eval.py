"""`gradmem-bench tasks-dir` and `lm-eval`: what other harnesses need."""

import typer


def tasks_dir() -> None:
    """Print the folder of the built-in tasks, for lm-eval's --include_path."""
    from gradmem_bench.registry import recipe_folder

    typer.echo(recipe_folder("task"))


def lm_eval(context: typer.Context) -> None:
    """Run lm-eval's own command line with --model gradmem_bench in it; its arguments are lm-eval's.

    [dim]gradmem-bench lm-eval --model gradmem_bench --model_args method=full_kv,backbone=gpt2 --tasks squad_removed[/]
    """
    from gradmem_bench.integrations.lm_eval_front import run

    run(context.args)
