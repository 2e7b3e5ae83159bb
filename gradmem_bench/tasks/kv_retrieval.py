"""Key-value retrieval: generated contexts of key-value pairs, each of which can be asked for.

    context  !KK:VV!!KK:VV!...!KK:VV!|      N pairs, 7 N + 1 characters for keys and values of 2
    query    ?!KK:
    target   VV

Document i of a split is a function of the settings, the split and i alone; of the seed too, in train.
"""

import json
import math
import string
from collections.abc import Callable, Sequence
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, overload

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from gradmem_bench.config import StrictModel, validated
from gradmem_bench.errors import UserError
from gradmem_bench.tasks.base import Document, Query, Source, Split, Task

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerFast

SYMBOLS = string.digits + string.ascii_lowercase + string.ascii_uppercase
"""What keys and values are made of; an alphabet of size a is the first a of them."""
STRUCTURE = "!:?|"
SPECIAL_TOKENS = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"}
TRAIN_CONTEXTS = 2**31 - 1

_BLOCK = 64
_STREAMS: dict[Split, int] = {"train": 0, "validation": 1, "test": 2}
_CODES = np.frombuffer(SYMBOLS.encode(), dtype=np.uint8)

Draw = Callable[[tuple[int, ...]], NDArray[np.uint64]]
"""Independent uniform 64-bit numbers of a shape."""


class KeyValueSettings(StrictModel):
    """`dataset_kwargs` of the task."""

    pairs: int = Field(default=8, ge=1, le=4096)
    """Key-value pairs in a context; their keys are distinct, their values independent."""
    key_length: int = Field(default=2, ge=1, le=8)
    """Symbols of a key."""
    value_length: int = Field(default=2, ge=1, le=64)
    """Symbols of a value."""
    alphabet: int = Field(default=62, ge=2, le=len(SYMBOLS))
    """How many symbols keys and values are made of."""
    noise: float = Field(default=0.0, ge=0, le=16)
    """Junk segments for each pair: round(pairs * noise) segments of random symbols, each as long as a pair with its
    marks, stand at random places among the pairs. Junk never holds a mark, so that it is no pair."""
    queries_per_context: int | None = Field(default=None, ge=1)
    """Pairs that are asked for, drawn at random; `None`, or more than there are, asks for all."""
    seed: int = Field(default=0, ge=0)
    """Of the train stream alone: validation and test are the same for every seed."""
    validation_contexts: int = Field(default=1000, ge=1)
    """How many the validation split has."""
    test_contexts: int = Field(default=1000, ge=1)
    """How many the test split has."""


class KeyValueRetrieval(Task):
    """Generated key-value retrieval.

    The three splits are independent streams of random numbers (Philox, keyed by split, seed and block of 64
    contexts). With few pairs over a small alphabet there are so few contexts that the streams must meet; nothing is
    left out of train on that account.
    """

    Settings: ClassVar[type[StrictModel]] = KeyValueSettings

    def __init__(self, declaration: dict[str, Any], path: Path | None = None) -> None:
        super().__init__(declaration, path)
        where = f"{path or self.name}: {self.settings_key}"
        self.settings = validated(KeyValueSettings, declaration.get(self.settings_key, {}), where)
        keys = self.settings.alphabet**self.settings.key_length
        if self.settings.pairs > keys:
            raise UserError(
                f"{where}: {self.settings.pairs} pairs need as many distinct keys, but keys of "
                f"{self.settings.key_length} out of {self.settings.alphabet} symbols are {keys}; raise either."
            )

    @property
    def independent_values(self) -> tuple[int, float]:
        settings = self.settings
        return settings.pairs, settings.value_length * math.log2(settings.alphabet)

    def documents(self, split: Split) -> "KeyValueDocuments":
        """The split's documents, made when they are asked for, in blocks of 64."""
        if split not in _STREAMS:
            raise UserError(f"There is no split '{split}'; a task has train, validation and test.")
        return KeyValueDocuments(self.settings, split)

    def source(self, split: Split) -> Source:
        """The hash is of what the documents depend on: of two seeds, test has one hash and train has two."""
        documents = self.documents(split)
        settings = self.settings.model_dump(exclude={"seed", "validation_contexts", "test_contexts"})
        identity = {
            "generator": "kv_retrieval 1",
            "split": split,
            "contexts": len(documents),
            "seed": self.settings.seed if split == "train" else None,
            **settings,
        }
        content_hash = sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        return Source("generated", None, content_hash, len(documents) * documents.queries_per_context)

    def tokenizer(self) -> "PreTrainedTokenizerFast":
        """One token a character: 4 special tokens, 4 marks, then the alphabet, so that a smaller one has equal ids."""
        from tokenizers import Tokenizer, decoders
        from tokenizers.models import BPE
        from transformers import PreTrainedTokenizerFast

        entries = [*SPECIAL_TOKENS.values(), *STRUCTURE, *SYMBOLS[: self.settings.alphabet]]
        # Byte-pair encoding without merges is one token a character.
        tokenizer = Tokenizer(BPE({entry: id for id, entry in enumerate(entries)}, merges=[], unk_token="<unk>"))
        tokenizer.decoder = decoders.Fuse()
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **SPECIAL_TOKENS)


class KeyValueDocuments(Sequence[Document]):
    """The documents of one split; a slice is a list."""

    def __init__(self, settings: KeyValueSettings, split: Split) -> None:
        self.settings = settings
        self.split = split
        self.queries_per_context = min(settings.queries_per_context or settings.pairs, settings.pairs)
        lengths = {"validation": settings.validation_contexts, "test": settings.test_contexts}
        self._length = lengths.get(split, TRAIN_CONTEXTS)
        # A batch seldom begins where a block does: the last few blocks are kept.
        self._block = lru_cache(maxsize=4)(self._make_block)

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> Document: ...
    @overload
    def __getitem__(self, index: slice) -> list[Document]: ...
    def __getitem__(self, index: int | slice) -> Document | list[Document]:
        chosen = range(self._length)[index]
        if isinstance(chosen, range):
            return [self._block(number // _BLOCK)[number % _BLOCK] for number in chosen]
        return self._block(chosen // _BLOCK)[chosen % _BLOCK]

    def _make_block(self, block: int) -> list[Document]:
        """Documents 64 * block to 64 * block + 63, always made together: that is what makes each one reproducible."""
        settings, asked = self.settings, self.queries_per_context
        seed = settings.seed if self.split == "train" else 0
        stream = np.random.Philox(np.random.SeedSequence(seed, spawn_key=(_STREAMS[self.split], block)))

        # Raw 64-bit words, never numpy's distributions: the words are the same in every version of numpy.
        def draw(shape: tuple[int, ...]) -> NDArray[np.uint64]:
            return stream.random_raw(shape)

        keys = _distinct_keys(draw, settings)
        values = _CODES[_symbols(draw, (_BLOCK, settings.pairs, settings.value_length), settings.alphabet)]
        if asked < settings.pairs:
            order = np.argsort(draw((_BLOCK, settings.pairs)), axis=1)
            chosen = np.sort(order[:, :asked], axis=1)[:, :, None]
            questions = np.take_along_axis(keys, chosen, axis=1), np.take_along_axis(values, chosen, axis=1)
        else:
            questions = keys, values
        contexts = self._contexts(draw, keys, values)
        texts = _texts(_marked(b"?!", questions[0], b":").reshape(_BLOCK * asked, -1))
        targets = _texts(questions[1].reshape(_BLOCK * asked, -1))

        documents = []
        for row, context in enumerate(contexts):
            identity = f"{self.split}-{block * _BLOCK + row}"
            at = row * asked
            queries = tuple(
                Query(f"{identity}-{number}", texts[at + number], (targets[at + number],)) for number in range(asked)
            )
            documents.append(Document(identity, context, queries))
        return documents

    def _contexts(self, draw: Draw, keys: NDArray[np.uint8], values: NDArray[np.uint8]) -> list[str]:
        """keys (64, N, K) and values (64, N, V), as character codes -> 64 contexts."""
        settings = self.settings
        pairs = np.concatenate([_marked(b"!", keys, b":"), _marked(b"", values, b"!")], axis=2)
        junk = round(settings.pairs * settings.noise)
        if junk:
            segments = _CODES[_symbols(draw, (_BLOCK, settings.pairs + junk, pairs.shape[2]), settings.alphabet)]
            # Which of all places the pairs take, in their order; the rest stays junk.
            places = np.sort(np.argsort(draw(segments.shape[:2]), axis=1)[:, : settings.pairs], axis=1)
            np.put_along_axis(segments, places[:, :, None], pairs, axis=1)
            pairs = segments
        flat = pairs.reshape(_BLOCK, -1)
        return _texts(np.concatenate([flat, np.full((_BLOCK, 1), ord("|"), dtype=np.uint8)], axis=1))


def _symbols(draw: Draw, shape: tuple[int, ...], alphabet: int) -> NDArray[np.intp]:
    """Uniform symbols as 0 ... alphabet - 1; the bias of the remainder is below 62 / 2**64."""
    return (draw(shape) % np.uint64(alphabet)).astype(np.intp)


def _distinct_keys(draw: Draw, settings: KeyValueSettings) -> NDArray[np.uint8]:
    """(64, N, K) character codes: in each row N distinct keys, every ordered choice equally likely."""
    count, length, alphabet = settings.pairs, settings.key_length, settings.alphabet
    powers = alphabet ** np.arange(length, dtype=np.int64)
    space = alphabet**length
    if space <= 4 * count:
        numbers = np.argsort(draw((_BLOCK, space)), axis=1)[:, :count]
        return _CODES[numbers[:, :, None] // powers % alphabet]
    symbols = _symbols(draw, (_BLOCK, count, length), alphabet)
    while True:
        numbers = symbols @ powers
        order = np.argsort(numbers, axis=1, kind="stable")
        ordered = np.take_along_axis(numbers, order, axis=1)
        rows, columns = np.nonzero(ordered[:, 1:] == ordered[:, :-1])
        if not len(rows):
            return _CODES[symbols]
        # Redrawing looks at which keys are equal, never at what they are: renaming the keys renames the outcome, so
        # that all ordered choices stay equally likely.
        symbols[rows, order[rows, columns + 1]] = _symbols(draw, (len(rows), length), alphabet)


def _marked(before: bytes, codes: NDArray[np.uint8], after: bytes) -> NDArray[np.uint8]:
    """(..., L) character codes with marks on both sides: (..., len(before) + L + len(after))."""
    parts = [
        np.broadcast_to(np.frombuffer(mark, dtype=np.uint8), (*codes.shape[:-1], len(mark))) for mark in (before, after)
    ]
    return np.concatenate([parts[0], codes, parts[1]], axis=-1)


def _texts(codes: NDArray[np.uint8]) -> list[str]:
    """(R, L) character codes -> R strings."""
    width = codes.shape[1]
    text = codes.tobytes().decode("ascii")
    return [text[start : start + width] for start in range(0, len(text), width)]


def dataset(**settings: Any) -> dict[str, "Dataset"]:
    """lm-eval's `custom_dataset`: every query of the task's documents as a row with context, query and targets.

    Args:
        settings: the YAML's `metadata` and `dataset_kwargs` together, as lm-eval passes them; only keys of
            KeyValueSettings are read. Train, endless here, is as many contexts as test there.
    """
    import datasets

    known = {key: value for key, value in settings.items() if key in KeyValueSettings.model_fields}
    task = KeyValueRetrieval({"task": "kv_retrieval", "dataset_kwargs": known})
    return {
        split: datasets.Dataset.from_list(
            [
                {"id": query.id, "context": document.context, "query": query.text, "targets": list(query.targets)}
                for document in task.documents(split)[: task.settings.test_contexts if split == "train" else None]
                for query in document.queries
            ]
        )
        for split in _STREAMS
    }
