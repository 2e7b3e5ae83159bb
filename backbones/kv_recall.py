"""Makes `backbones/kv_recall`: a Llama of 2 layers and width 64 that can look up a key in a context it sees.

    python backbones/kv_recall.py [FOLDER] [--seed 0]

From random weights a small LM sits for thousands of steps on a plateau where it answers with any of the values it saw,
whatever its memory is. What takes it so long is to learn, by chance, that a token has to know the tokens before it
before another can look for it. Here the first layer is taught just that: beside the answers, a linear map of its output
has to name the last three tokens. The map is then thrown away. A minute on one core is enough, and every method of the
small key-value task starts from the same weights.
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from gradmem_bench.batch import Batch
from gradmem_bench.config import BackboneConfig, StrictModel
from gradmem_bench.evaluation import Evaluator
from gradmem_bench.loading import load_backbone, weights_hash
from gradmem_bench.methods.full_kv import FullKV
from gradmem_bench.registry import recipe_folder, resolve
from gradmem_bench.tasks.batching import encode_documents, training_batch
from gradmem_bench.tasks.declaration import load_task

SEEN = 3
"""How many tokens back the first layer is asked for."""
STEPS, WARMUP, BATCH, LEARNING_RATE = 600, 100, 32, 2e-3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=recipe_folder("backbone") / "kv_recall")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    torch.set_num_threads(1)
    task = load_task(Path(resolve("task", "kv_small").target))
    shape = BackboneConfig(name="llama-2x64", heads=4, init_std=0.15, max_positions=256)
    backbone = load_backbone(shape, task.tokenizer(), "cpu", arguments.seed)
    method = FullKV(backbone, StrictModel())
    reminder = Reminder(backbone.model.model.layers[0], backbone.width, backbone.vocabulary_size)
    parameters = [*method.parameters(), *reminder.head.parameters()]
    optimizer = torch.optim.AdamW(parameters, betas=(0.9, 0.95), weight_decay=0.0)
    # Another stream than the one the methods are trained on.
    documents = load_task(Path(resolve("task", "kv_small").target), {"seed": 2**31}).documents("train")
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1, (step + 1) / WARMUP) * min(1, 2 * (1 - step / STEPS))
        encoded = encode_documents(documents[step * BATCH : (step + 1) * BATCH], task, backbone)
        batch = training_batch(encoded, backbone.end_id)
        answers = method.loss(batch).total
        (answers + reminder.loss(batch)).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % 100 == 0:
            print(f"step {step + 1:4d}  answers {answers.item():.3f} nats", flush=True)
    held_out = encode_documents(task.documents("validation")[:256], task, backbone)
    score = Evaluator(method, task, 32).teacher_forced_score(held_out)
    backbone.model.save_pretrained(arguments.folder)
    backbone.tokenizer.save_pretrained(arguments.folder)
    print(f"exact match {score:.3f} with the context in sight; weights {weights_hash(backbone.model)}")


class Reminder:
    """Asks a layer's output, by a linear map of its own, for the tokens that came before each."""

    def __init__(self, layer: nn.Module, width: int, vocabulary: int) -> None:
        self.head = nn.Linear(width, SEEN * vocabulary)
        self.states = torch.empty(0)
        layer.register_forward_hook(self._keep)

    def _keep(self, layer: nn.Module, inputs: object, output: torch.Tensor) -> None:
        # WRITE is the pass over whole contexts; READ, which runs queries alone, comes after it.
        if self.states.numel() == 0:
            self.states = output

    def loss(self, batch: Batch) -> torch.Tensor:
        ids, length = batch.contexts.ids, batch.contexts.ids.shape[1]
        logits = self.head(self.states[:, SEEN:]).unflatten(-1, (SEEN, -1))
        before = torch.stack([ids[:, SEEN - back : length - back] for back in range(1, SEEN + 1)], dim=2)
        self.states = torch.empty(0)
        return F.cross_entropy(logits.flatten(0, 2), before.flatten())


if __name__ == "__main__":
    main()
