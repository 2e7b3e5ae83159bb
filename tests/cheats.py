"""Small methods that each break one law, and nothing else; by the law they break."""

import hashlib
import os
import sys
import tempfile
from pathlib import Path

import torch

from gradmem_bench.batch import Tokens
from gradmem_bench.config import Budget
from gradmem_bench.errors import UserError
from gradmem_bench.methods.base import Footprint, MemoryMethod
from gradmem_bench.methods.mean_pool import MeanPool
from gradmem_bench.methods.truncated_text import TruncatedText
from gradmem_bench.state import MemoryState

# ------------------------------------------------------- the state is a key, and the text is kept elsewhere


class Keyed(TruncatedText):
    """Its states are 8 bytes, a hash of the text; where the text is kept, subclasses say."""

    def keep(self, key: int, text: str) -> None:
        raise NotImplementedError

    def kept(self, key: int) -> str:
        raise NotImplementedError

    def write(self, contexts):
        texts = super().write(contexts).texts()
        keys = [int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "little") for text in texts]
        for key, text in zip(keys, texts, strict=True):
            self.keep(key, text)
        return MemoryState({"key": torch.tensor(keys)[:, None].to(contexts.ids.device)})

    def read(self, state):
        return super().read(MemoryState.from_texts([self.kept(int(key)) for key in state.tensors["key"]]))

    @classmethod
    def footprint(cls, parameters, backbone, context_tokens, context_bytes):
        text = super().footprint(parameters, backbone, context_tokens, context_bytes)
        return Footprint(8, text.read_positions, 0)

    @classmethod
    def fit(cls, parameters, budget, backbone):
        if budget.bytes is not None and budget.bytes < 8:
            raise UserError("A key has 8 bytes.")
        return super().fit(parameters, Budget(positions=budget.positions), backbone)


class KeepsOnItself(Keyed):
    def __init__(self, backbone, parameters):
        super().__init__(backbone, parameters)
        self.memory_of_mine = {}

    def keep(self, key, text):
        self.memory_of_mine[key] = text

    def kept(self, key):
        return self.memory_of_mine.get(key, "")


EVERYTHING: dict[int, str] = {}


class HidesInAGlobal(Keyed):
    def keep(self, key, text):
        EVERYTHING[key] = text

    def kept(self, key):
        return EVERYTHING[key]


class HidesInAFile(Keyed):
    def keep(self, key, text):
        self.path(key).write_text(text)

    def kept(self, key):
        return self.path(key).read_text() if self.path(key).exists() else ""

    @staticmethod
    def path(key) -> Path:
        return Path(tempfile.gettempdir()) / f"gradmem-bench-cheat-{key}"


class HidesInAFileOfTorch(HidesInAFile):
    """Compiled code opens it, of which Python is told nothing."""

    def keep(self, key, text):
        torch.save(torch.tensor(list(text.encode()), dtype=torch.uint8), str(self.path(key)))

    def kept(self, key):
        return bytes(torch.load(self.path(key)).tolist()).decode() if self.path(key).exists() else ""


class HidesInAFileAndSaysNothing(HidesInAFile):
    """Goes on where it may not write."""

    def keep(self, key, text):
        try:
            super().keep(key, text)
        except OSError:
            pass


class HidesInTheWeights(Keyed):
    """Fast weights that stay: what was written moves the backbone itself."""

    def rows(self):
        # Of the key-value tokenizer's marks and special tokens: no text of the laws holds one.
        return self.backbone.model.get_input_embeddings().weight.detach()[1:8].view(-1)

    def keep(self, key, text):
        ids = self.backbone.encode([text])[0]
        self.rows()[: len(ids) + 1] = torch.tensor([len(ids), *ids], dtype=torch.float32)

    def kept(self, key):
        count, *ids = self.rows().long().tolist()
        return self.backbone.decode(ids[:count])


# --------------------------------------------------------------------------------------- the query


class PeeksThroughAHook(MeanPool):
    """A hook on the shared embeddings sees every token, queries too; the last one seen is mixed into the next state."""

    def __init__(self, backbone, parameters):
        super().__init__(backbone, parameters)
        self.seen = torch.zeros(backbone.width)
        self.writing = False

        def look(table, inputs, output):
            if not self.writing:
                self.seen = output.detach()[0].mean(dim=0)

        backbone.model.get_input_embeddings().register_forward_hook(look)

    def write(self, contexts):
        self.writing = True
        state = super().write(contexts)
        self.writing = False
        return MemoryState({"memory": state.tensors["memory"] + self.seen})


class PeeksAtTheCaller(MeanPool):
    """Looks for the queries in the frames of whoever called WRITE."""

    def write(self, contexts):
        memory = super().write(contexts).tensors["memory"]
        frame = sys._getframe(1)
        while frame is not None:
            for document in frame.f_locals.get("documents") or []:
                if hasattr(document, "queries"):
                    memory = memory + self.backbone.embed(torch.tensor(document.queries[0])).mean(dim=0)
            frame = frame.f_back
        return MemoryState({"memory": memory})


class PeeksAtTheBatch(MeanPool):
    """Its loss tells WRITE what will be asked."""

    asked = None

    def loss(self, batch, whole=None):
        self.asked = batch.queries
        return super().loss(batch, whole)

    def write(self, contexts):
        memory = super().write(contexts).tensors["memory"]
        if self.training and self.asked is not None:
            memory = memory + self.backbone.embed(self.asked.ids).mean(dim=(0, 1))
        return MemoryState({"memory": memory})


# ------------------------------------------------------------------------------- the size of a state


class PadsItsSizeAway(MeanPool):
    """Calls all of its vectors but the first padding: they are in the state, and not among its bytes."""

    def write(self, contexts):
        memory = super().write(contexts).tensors["memory"]
        return MemoryState({"memory": memory}, frozenset({"memory"}), torch.ones(len(memory), dtype=torch.long))


class UnderstatesItsBytes(MeanPool):
    class State(MemoryState):
        def nbytes(self, dtype="float32"):
            return [1] * len(self)

    def write(self, contexts):
        return self.State(super().write(contexts).tensors)


class UnderstatesItsFootprint(MeanPool):
    @classmethod
    def footprint(cls, parameters, backbone, context_tokens, context_bytes):
        honest = super().footprint(parameters, backbone, context_tokens, context_bytes)
        return Footprint(honest.state_bytes // 2, honest.read_positions, 0)


class RunsMoreThanItDeclares(MeanPool):
    def write(self, contexts):
        self.backbone.prefill(contexts)
        return super().write(contexts)


class HidesInAShape(TruncatedText):
    """The length of a tensor without any bytes is a number that nobody counts."""

    def write(self, contexts):
        lengths = torch.where(contexts.mask, contexts.ids, 0).sum(dim=1)
        empty = torch.zeros(len(contexts), int(lengths.max()), 0)
        return MemoryState({"nothing": empty}, frozenset({"nothing"}), lengths)

    def read(self, state):
        ids = state.lengths[:, None].to(self.backbone.device) % self.backbone.vocabulary_size
        tokens = Tokens(ids, torch.ones_like(ids, dtype=torch.bool))
        return MeanPool.read(self, MemoryState({"memory": self.backbone.embed(tokens.ids)}))

    @classmethod
    def footprint(cls, parameters, backbone, context_tokens, context_bytes):
        return Footprint(0, 1, 0)


# ----------------------------------------------------------------------------------- whose state it is


class ReturnsAnothersState(MeanPool):
    def write(self, contexts):
        return MemoryState({"memory": super().write(contexts).tensors["memory"].roll(1, dims=0)})


class ReturnsTheLastState(MeanPool):
    """That of what was written before."""

    last = None

    def write(self, contexts):
        memory = super().write(contexts).tensors["memory"]
        last, self.last = self.last, memory
        return MemoryState({"memory": memory if last is None else memory + last.mean(dim=0)})


class IsNotDeterministic(MeanPool):
    def write(self, contexts):
        memory = super().write(contexts).tensors["memory"]
        return MemoryState({"memory": memory + 0.1 * torch.randn_like(memory)})


class MixesTheBatch(MeanPool):
    def write(self, contexts):
        memory = super().write(contexts).tensors["memory"]
        return MemoryState({"memory": memory - memory.mean(dim=0)})


class SeesThePadding(MeanPool):
    def write(self, contexts):
        return super().write(Tokens(contexts.ids, torch.ones_like(contexts.mask)))


class IgnoresItsState(MeanPool):
    def read(self, state):
        return super().read(MemoryState({"memory": torch.ones_like(state.tensors["memory"])}))


# ------------------------------------------------------------------------------- budgets and training


class ExceedsItsBudget(MeanPool):
    @classmethod
    def fit(cls, parameters, budget, backbone):
        fitted = super().fit(parameters, budget, backbone)
        return fitted.model_copy(update={"memory_vectors": fitted.memory_vectors + 1})


class LeavesItsBudgetUnused(MeanPool):
    @classmethod
    def fit(cls, parameters, budget, backbone):
        fitted = super().fit(parameters, budget, backbone)
        return fitted if fitted.memory_vectors < parameters.memory_vectors else parameters


class TrainsWhatNothingReaches(MeanPool):
    def __init__(self, backbone, parameters):
        super().__init__(backbone, parameters)
        self.unused = torch.nn.Linear(4, 4)


class DetachesItsState(MeanPool):
    """What WRITE learns from is cut off."""

    def __init__(self, backbone, parameters):
        super().__init__(backbone, parameters)
        self.scale = torch.nn.Parameter(torch.ones(backbone.width))

    def write(self, contexts):
        return MemoryState({"memory": (super().write(contexts).tensors["memory"] * self.scale).detach()})


class LosesItsWeights(MeanPool):
    """A random projection that is no parameter, and so in no checkpoint."""

    def __init__(self, backbone, parameters):
        super().__init__(backbone, parameters)
        self.register_buffer("projection", torch.randn(backbone.width, backbone.width) / backbone.width**0.5)

    def write(self, contexts):
        return MemoryState({"memory": super().write(contexts).tensors["memory"] @ self.projection})


class WritesDoublesInBfloat16(MeanPool):
    """An integer beside each number, where the precision is low."""

    def write(self, contexts):
        memory = super().write(contexts).tensors["memory"]
        extra = {"more": memory.long()} if torch.is_autocast_enabled(memory.device.type) else {}
        return MemoryState({"memory": memory} | extra)


class IsAnotherOnTheGPU(MeanPool):
    def write(self, contexts):
        return MemoryState({"memory": super().write(contexts).tensors["memory"] * (3 if contexts.ids.is_cuda else 1)})


class DoesNotRun(MeanPool):
    def write(self, contexts):
        return super().write(contexts).tensors["memory"]


class BeginsWithSomethingElse(MeanPool):
    def blank(self, count):
        return MemoryState({"memory": torch.zeros(count, 1, self.backbone.width)})


class RefusesEverything(MeanPool):
    def __init__(self, backbone, parameters):
        raise UserError("This method takes no such backbone.")


BREAKS: dict[str, list[tuple[type[MemoryMethod], str]]] = {
    "runs": [
        (DoesNotRun, "gives a tensor of shape (3, 8, 32) and not a MemoryState of as many"),
        (RefusesEverything, "it refuses this backbone: This method takes no such backbone."),
        (
            BeginsWithSomethingElse,
            "WRITE begins with is a MemoryState of 3, and not 3 states of the names",
        ),
    ],
    "bytes": [(PadsItsSizeAway, "something that READ uses is not in the bytes")],
    "size": [
        (UnderstatesItsBytes, "It says that a state has 1 bytes, and 1,024 are serialised"),
        (UnderstatesItsFootprint, "declares at most 512 state bytes for a context of 1 tokens, and 1,024 are measured"),
        (RunsMoreThanItDeclares, "declares at most 0 WRITE positions for a context of 1 tokens, and 1 are measured"),
        (HidesInAShape, "The length of tensors without any bytes tells contexts apart"),
    ],
    "repeatable": [
        (ReturnsTheLastState, "Written twice, a context gets two different states"),
        (IsNotDeterministic, "Written twice, a context gets two different states"),
    ],
    "batch": [
        (ReturnsAnothersState, "Context 1 of a batch gets the state of context 3"),
        (MixesTheBatch, "depends on what is written beside it in the batch"),
    ],
    "padding": [(SeesThePadding, "The state of a context depends on how much padding follows it")],
    "query": [
        (PeeksThroughAHook, "after one was asked, or with others to come, 'memory' differs"),
        (PeeksAtTheCaller, "WRITE finds the queries where the harness keeps them"),
        (PeeksAtTheBatch, "In training the state depends on the queries"),
    ],
    "gradient": [
        (TrainsWhatNothingReaches, "No gradient reaches 'unused.weight' and 1 more"),
        (DetachesItsState, "No gradient reaches 'scale'"),
    ],
    "saving": [(LosesItsWeights, "writes another state: 'memory' differs")],
    "isolation": [
        (KeepsOnItself, "WRITE keeps something on the method itself ('memory_of_mine' changed)"),
        (HidesInAGlobal, "WRITE keeps something in the process, outside the method ('cheats.EVERYTHING' changed)"),
        (HidesInAFile, "WRITE leaves something behind beside its bytes: it opened"),
        (HidesInAFileOfTorch, "WRITE leaves something behind beside its bytes: it raised"),
        (HidesInAFileAndSaysNothing, "WRITE leaves something behind beside its bytes: it opened"),
        (HidesInTheWeights, "WRITE keeps something on the method itself ('backbone.model."),
    ],
    "swap": [(IgnoresItsState, "READ gives the same answers from another context's state")],
    "budget": [
        (ExceedsItsBudget, "it writes a state of"),
        (LeavesItsBudgetUnused, "`fit` does not use its budget: of 4 KiB it takes 1 KiB"),
    ],
    "gpu": [(IsAnotherOnTheGPU, "From states that were written on the GPU it answers otherwise")],
    "bfloat16": [(WritesDoublesInBfloat16, "In bfloat16 a state has 3,072 bytes, and its footprint declares 1,024")],
}


def clean_up() -> None:
    """Removes the files of the cheats that hide in them."""
    for path in Path(tempfile.gettempdir()).glob("gradmem-bench-cheat-*"):
        os.remove(path)
