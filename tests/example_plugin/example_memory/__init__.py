"""What the entry points name that is a file; nothing heavy is imported here."""

from pathlib import Path

STRIDED_BY_FOUR = Path(__file__).with_name("strided_by_four.yaml")
LAST_SYMBOL = Path(__file__).with_name("last_symbol.yaml")
