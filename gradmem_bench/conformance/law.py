"""What a law is."""

from collections.abc import Callable
from dataclasses import dataclass

from gradmem_bench.conformance.subject import Subject


class Broken(Exception):
    """A law was broken; the message says what the method did."""


class NotTried(Exception):
    """A law could not be tried; the message says why."""


@dataclass(frozen=True)
class Law:
    """One thing that every method does, or never does."""

    name: str
    says: str
    needs: tuple[str, ...]
    """The laws that it cannot be told from while they are broken."""
    trial: Callable[[Subject], None]
    """Raises Broken or NotTried."""


def law(name: str, says: str, *needs: str) -> Callable[[Callable[[Subject], None]], Law]:
    """Makes a Law of the function that tries it."""
    return lambda trial: Law(name, says, needs, trial)
