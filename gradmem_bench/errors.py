"""What a person did wrong, said in one sentence."""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """A request that cannot be met: the message names the thing, what was expected and the way out.

    The command line prints the message alone and exits with code 2; nothing else is caught.
    """


class Unreachable(UserError):
    """Weights, a tokenizer or data that were looked for on a hub: the next one that asks for them fails alike."""


class Notice(UserWarning):
    """What a user should know of a result, or why something of theirs was left out; the command line prints the message
    alone."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """` Did you mean 'x'?` for the nearest of `known`, or the list of them when none is near."""
    known = sorted(known)
    near = get_close_matches(name, known, n=1, cutoff=0.6)
    if near:
        return f" Did you mean '{near[0]}'?"
    return f" Known: {', '.join(known)}." if known else ""
