"""A task that makes its own documents: random letters, of which the last is asked for."""

import random

from gradmem_bench.tasks.base import Document, Query, Source, Task

LETTERS = "abcdefgh"


class LastSymbol(Task):
    def documents(self, split):
        draw = random.Random(split)
        contexts = ["".join(draw.choices(LETTERS, k=self.declaration["dataset_kwargs"]["length"])) for _ in range(32)]
        return [
            Document(f"{split}-{row}", context, (Query(f"{split}-{row}", "?", (context[-1],)),))
            for row, context in enumerate(contexts)
        ]

    def source(self, split):
        return Source("generated", None, None, 32)

    def tokenizer(self):
        """One token a letter."""
        from tokenizers import Tokenizer, decoders
        from tokenizers.models import BPE
        from transformers import PreTrainedTokenizerFast

        vocabulary = {entry: number for number, entry in enumerate(["<eos>", "<unk>", "?", *LETTERS])}
        tokenizer = Tokenizer(BPE(vocabulary, merges=[], unk_token="<unk>"))
        tokenizer.decoder = decoders.Fuse()
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", unk_token="<unk>")
