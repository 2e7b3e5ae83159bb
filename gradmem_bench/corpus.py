"""Plain text to train a language model on: the documents in files, which of them are held out, and their tokens."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from gradmem_bench.batch import Batch, Tokens
from gradmem_bench.errors import UserError
from gradmem_bench.hashing import file_hash
from gradmem_bench.tasks.sources import read_local

TEXT_COLUMN = "text"
_SUFFIXES = (".txt", ".jsonl", ".json", ".jsonl.xz", ".parquet")
_HELD_OUT = ("validation", "valid", "test")
"""A file whose name begins so is never trained on."""
_HELD_OUT_SHARE = 100
"""Where there is no such file, every so many-th document is held out."""
_ENCODED_AT_A_TIME = 1000


@dataclass(frozen=True)
class TextFiles:
    """The files of a corpus, those to train on and those that are held out; the latter may be none."""

    training: tuple[Path, ...]
    held_out: tuple[Path, ...]

    def hashes(self) -> dict[str, str]:
        """SHA-256 of each file under its name."""
        return {file.name: file_hash(file) for file in (*self.training, *self.held_out)}

    def documents(self, held_out: bool) -> Iterator[list[str]]:
        """The documents to train on, or the held-out ones; one list a file, so that one file is in memory at a time.

        Raises:
            UserError: a file is damaged or has no column `text`; or nothing is left on one side.
        """
        count, found = 0, 0
        for file in self.held_out if held_out and self.held_out else self.training:
            texts = read_texts(file)
            if not self.held_out:
                numbered = list(enumerate(texts, count + 1))
                count += len(texts)
                texts = [text for number, text in numbered if (number % _HELD_OUT_SHARE == 0) == held_out]
            found += len(texts)
            if texts:
                yield texts
        if not found:
            raise UserError(
                f"{self.training[0]} and its neighbours have no documents to {'hold out' if held_out else 'train on'}: "
                f"give {_HELD_OUT_SHARE} or more, or a second file whose name begins with 'validation'."
            )


def text_files(path: Path) -> TextFiles:
    """The corpus at `path`, a file or a folder; raises UserError where there is no text to train on."""
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.name.endswith(_SUFFIXES))
    elif path.is_file():
        files = [path]
    else:
        raise UserError(f"--data {path}: there is no such file or folder.")
    held_out = tuple(file for file in files if path.is_dir() and file.name.startswith(_HELD_OUT))
    training = tuple(file for file in files if file not in held_out)
    if not training or not training[0].name.endswith(_SUFFIXES):
        raise UserError(f"--data {path}: no file to train on; expected {', '.join(_SUFFIXES[:-1])} or {_SUFFIXES[-1]}.")
    return TextFiles(training, held_out)


def read_texts(file: Path) -> list[str]:
    """A file's documents: the rows' column `text`, or the paragraphs of a text file; none of them empty."""
    if file.suffix == ".txt":
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{file} is not UTF-8 text: {error.reason} at byte {error.start}.") from None
        texts = [paragraph.strip() for paragraph in text.split("\n\n")]
    else:
        rows = read_local(file, str(file)).rows
        if TEXT_COLUMN not in rows[0]:
            raise UserError(f"{file} has no column '{TEXT_COLUMN}', only {', '.join(map(repr, rows[0]))}.")
        texts = [row[TEXT_COLUMN] for row in rows]
        if wrong := next((number for number, one in enumerate(texts, start=1) if not isinstance(one, str)), None):
            raise UserError(f"{file}, row {wrong}: the column '{TEXT_COLUMN}' is no text.")
    return [text for text in texts if text]


@dataclass(frozen=True)
class Stream:
    """Documents as one row of tokens, each behind an end-of-text token.

    Args:
        ids: (N,), beginning with the first document's end-of-text token and ending with one more.
        documents: how many there are.
        text_bytes: their UTF-8 bytes.
    """

    ids: np.ndarray
    documents: int
    text_bytes: int

    def windows(self, length: int) -> int:
        """Of `length` predicted tokens each; the last one may be shorter."""
        return -(-(len(self.ids) - 1) // length)

    def batch(self, windows: Sequence[int], length: int) -> Batch:
        """Windows of `length` tokens to predict, behind the token before them."""
        rows = [self.ids[place * length : place * length + length + 1].astype(np.int64) for place in windows]
        if len({len(row) for row in rows}) == 1:
            ids = torch.from_numpy(np.stack(rows))
            whole = Tokens(ids, torch.ones_like(ids, dtype=torch.bool))
        else:
            whole = Tokens.from_lists([row.tolist() for row in rows])
        return Batch(
            Tokens(whole.ids[:, :0], whole.mask[:, :0]),
            Tokens(whole.ids[:, :1], whole.mask[:, :1]),
            Tokens(whole.ids[:, 1:], whole.mask[:, 1:]),
            torch.arange(len(rows)),
        )


def stream(parts: Iterator[list[str]], tokenizer: PreTrainedTokenizerBase, at_least: int | None = None) -> Stream:
    """The documents as tokens; with `at_least`, only the first ones that make so many."""
    dtype = np.uint16 if len(tokenizer) <= 2**16 else np.uint32
    pieces: list[np.ndarray] = []
    documents = size = tokens = 0
    end = tokenizer.eos_token_id
    for texts in parts:
        for first in range(0, len(texts), _ENCODED_AT_A_TIME):
            some = texts[first : first + _ENCODED_AT_A_TIME]
            for text, ids in zip(some, tokenizer(some, add_special_tokens=False).input_ids, strict=True):
                pieces.append(np.array([end, *ids], dtype=dtype))
                documents, size, tokens = documents + 1, size + len(text.encode()), tokens + len(ids) + 1
                if at_least is not None and tokens >= at_least:
                    return Stream(np.concatenate([*pieces, np.array([end], dtype=dtype)]), documents, size)
    return Stream(np.concatenate([*pieces, np.array([end], dtype=dtype)]), documents, size)
