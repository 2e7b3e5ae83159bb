"""Templates over a row of data, which mean here what they mean in lm-eval."""

import ast
from collections.abc import Callable
from typing import Any

from jinja2 import BaseLoader, Environment, StrictUndefined, TemplateError, UndefinedError, meta

from gradmem_bench.errors import UserError

# The options of lm-eval's own environment.
_JINJA = Environment(loader=BaseLoader(), undefined=StrictUndefined, keep_trailing_newline=True)


def renderer(text: str, key: str, declared_in: str) -> Callable[[dict[str, Any], str], str]:
    """What makes a text of a row; its second argument says which row it is.

    Raises:
        UserError: naming `key` and `declared_in`, when `text` is no template; or the row, when it lacks a column.
    """
    try:
        template = _JINJA.from_string(text)
    except TemplateError as error:
        raise UserError(f"{declared_in}: {key} is no jinja2 template: {error}.") from None

    def render(row: dict[str, Any], where: str) -> str:
        try:
            return template.render(**row)
        except UndefinedError as error:
            raise UserError(f"{where}: {key} is '{text}', but {error}; columns: {', '.join(row)}.") from None
        except (TemplateError, TypeError, ValueError, ArithmeticError) as error:
            raise UserError(f"{where}: {key} is '{text}', which fails here: {error}.") from None

    return render


def columns(text: str) -> set[str]:
    """The columns that a template reads; one that is a column's name alone reads that."""
    return {text} if text.isidentifier() else meta.find_undeclared_variables(_JINJA.parse(text))


def listed(text: str) -> str | list[str]:
    """lm-eval reads a rendered target that looks like a Python list as that list; so does this."""
    if text.startswith("[") and text.endswith("]"):
        try:
            return ast.literal_eval(text)
        except (SyntaxError, ValueError):
            pass
    return text
