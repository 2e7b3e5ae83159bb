"""A small language model from scratch, on plain text, for where no hub can be reached.

The same loop trains it that trains every method: the floor, which answers with nothing but its weights, is asked for
the rest of each sequence behind its first token. What comes out is a folder that `--backbone` loads.
"""

import json
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from gradmem_bench import processes
from gradmem_bench.backbone import Backbone
from gradmem_bench.batch import Batch
from gradmem_bench.config import BackboneConfig, PretrainingRecipe, StrictModel, TrainingConfig, fingerprint, validated
from gradmem_bench.corpus import Stream, TextFiles, stream, text_files
from gradmem_bench.errors import UserError, did_you_mean
from gradmem_bench.loading import load_backbone, weights_hash
from gradmem_bench.methods.base import MemoryMethod
from gradmem_bench.methods.no_memory import NoMemory
from gradmem_bench.output import check_writable
from gradmem_bench.precision import accelerator_for
from gradmem_bench.reporting.progress import RunDisplay
from gradmem_bench.results import code_version, environment
from gradmem_bench.stages import Autocast
from gradmem_bench.training import PROGRESS_FILE, Progress, Trainer

RECORD_FILE = "pretraining.json"


@dataclass(frozen=True)
class TextStage:
    """Sequences of a stream to train on, in any order, and held-out text to select by."""

    lower_is_better: ClassVar[bool] = True
    until: ClassVar[None] = None
    steps: ClassVar[None] = None
    is_stream: ClassVar[bool] = False
    training: Stream
    held_out: Stream
    sequence_tokens: int

    def __len__(self) -> int:
        return (len(self.training.ids) - 1) // self.sequence_tokens

    @property
    def scored(self) -> int:
        return self.held_out.windows(self.sequence_tokens)

    def length(self, index: int) -> int:
        return self.sequence_tokens

    def batch(
        self, indices: Sequence[int], method: MemoryMethod, config: TrainingConfig, generator: np.random.Generator
    ) -> Batch:
        return self.training.batch(indices, self.sequence_tokens)

    def score(self, method: MemoryMethod, config: TrainingConfig, autocast: Autocast) -> float:
        return bits_per_byte(method, self.held_out, self.sequence_tokens, config.batch_size, autocast)


@torch.no_grad()
def bits_per_byte(method: MemoryMethod, text: Stream, length: int, batch_size: int, autocast: Autocast) -> float:
    """What each byte of the documents costs, their ends included, in windows of `length` tokens side by side.

    Every token is predicted once, from the token before its window on.
    """
    method.eval()
    nats, backbone = 0.0, method.backbone
    for first in range(0, text.windows(length), batch_size):
        windows = range(first, min(first + batch_size, text.windows(length)))
        batch = text.batch(windows, length).to(backbone.device)
        with autocast():
            prefix = method.read(method.write(batch.contexts))
            losses, _ = backbone.token_losses(prefix, batch.queries, batch.targets)
        nats += float(losses.double().sum())
    return nats / math.log(2) / text.text_bytes


@dataclass(frozen=True)
class Pretraining:
    """A pretraining as it will be made; no weights were drawn for it."""

    recipe: PretrainingRecipe
    backbone: BackboneConfig
    training: TrainingConfig
    files: TextFiles
    shape: Backbone
    """The backbone without weights (on the meta device)."""
    seed: int
    device: str
    dtype: str

    def configuration(self) -> dict[str, Any]:
        """All that the weights depend on."""
        return {
            "preset": self.recipe.name,
            # Wherever the tokenizer stands, it is the same one.
            "backbone": self.backbone.model_dump(mode="json", exclude={"tokenizer"}),
            "tokenizer_hash": fingerprint(sorted(self.shape.tokenizer.get_vocab().items())),
            "sequence_tokens": self.recipe.sequence_tokens,
            "training": self.training.model_dump(mode="json"),
            "data": self.files.hashes(),
            "seed": self.seed,
            "dtype": self.dtype,
        }


def resolve(
    recipe: PretrainingRecipe, data: Path, settings: dict[str, Any], seed: int, device: str, dtype: str
) -> Pretraining:
    """Checks everything that can be checked without weights.

    Args:
        settings: the sections `backbone` and `training`, laid over the recipe's.
    Raises:
        UserError: a key or value is wrong, there is no text, or the sequences are longer than the model's positions.
    """
    if unknown := sorted(settings.keys() - {"backbone", "training"}):
        raise UserError(
            f"--set {unknown[0]}: there is no such section.{did_you_mean(unknown[0], ('backbone', 'training'))}"
        )
    backbone = validated(BackboneConfig, recipe.backbone | settings.get("backbone", {}), "backbone")
    training = validated(
        TrainingConfig, recipe.training | settings.get("training", {}), f"the training of '{recipe.name}'"
    )
    for key in ("curriculum", "queries_per_context"):
        if getattr(training, key):
            raise UserError(f"training.{key} means nothing to plain text; leave it out.")
    files = text_files(data)
    shape = load_backbone(backbone, None, "meta", seed)
    before = 1 + len(shape.start_ids)
    if recipe.sequence_tokens + before > shape.max_positions:
        raise UserError(
            f"Sequences of {recipe.sequence_tokens} tokens and {before} before them do not fit the "
            f"{shape.max_positions} positions of {backbone.name}; set backbone.max_positions."
        )
    return Pretraining(recipe, backbone, training, files, shape, seed, device, dtype)


def perform(plan: Pretraining, output: Path, display: RunDisplay) -> dict[str, Any] | None:
    """Trains what is missing of it, and leaves a Hugging Face folder with its record in `output`, its weights in
    float32, or in bfloat16 where that was the dtype; `None` in a process that only trains.

    Raises:
        UserError: training diverged, there is too little text, or `output` cannot be written to or holds another
            pretraining or a model.
    """
    code_version()  # What the record will name is what is loaded now.
    configuration = plan.configuration()
    record_file = output / RECORD_FILE
    if processes.already_made(record_file, plan.device):
        record = json.loads(record_file.read_text())
        if record["configuration"] != configuration:
            raise UserError(f"{output} holds another pretraining; name another --output or remove it.")
        display.note(f"done before, in {output}")
        return record
    held = sorted(file.name for pattern in ("config.json", "*.safetensors") for file in output.glob(pattern))
    if held and PROGRESS_FILE not in held:
        raise UserError(f"{output} holds a model that was not made here ({held[0]}); name another --output.")
    check_writable(output)
    config, length = plan.training, plan.recipe.sequence_tokens
    accelerator = accelerator_for(plan.device, plan.dtype, output)
    torch.manual_seed(plan.seed)
    backbone = load_backbone(plan.backbone, None, str(accelerator.device), plan.seed)
    method = NoMemory(backbone, StrictModel())
    with display.working("tokenize the text"):
        training = stream(plan.files.documents(held_out=False), backbone.tokenizer)
        some = stream(plan.files.documents(held_out=True), backbone.tokenizer, config.validation_contexts * length)
    stage = TextStage(training, some, length)
    if len(stage) < config.batch_size:
        raise UserError(
            f"{len(training.ids):,} tokens make {len(stage)} sequences of {length}, fewer than one batch of "
            f"{config.batch_size}; give more text, or set training.batch_size."
        )
    display.note(f"{training.documents:,} documents, {training.text_bytes:,} bytes, {len(training.ids):,} tokens")
    output.mkdir(parents=True, exist_ok=True)
    with display.training(config) as report:
        identity = {"pretraining": fingerprint(configuration)}
        trainer = Trainer(method, [stage], config, plan.seed, output, accelerator, identity, report)
        accelerator.init_trackers("tensorboard")
        if trainer.resume():
            display.note(f"goes on from the checkpoint of step {trainer.progress.step}")
        progress = trainer.run()
        for tracker in accelerator.trackers:
            tracker.finish()
    if not processes.is_first():
        return None
    # Nearly all of them were only ever multiplied in bfloat16, and half as many bytes can be handed on.
    kept = backbone.model.to(torch.bfloat16) if plan.dtype == "bfloat16" else backbone.model
    kept.save_pretrained(output)
    backbone.tokenizer.save_pretrained(output)
    # What is scored is what lies in the folder.
    backbone = load_backbone(BackboneConfig(name=str(output.resolve())), None, str(accelerator.device), plan.seed)
    method = NoMemory(backbone, StrictModel())
    with display.working("score the held-out text"):
        held_out = stream(plan.files.documents(held_out=True), backbone.tokenizer)
        bits = bits_per_byte(method, held_out, length, config.batch_size, accelerator.autocast)
    record = _record(plan, configuration, backbone, training, held_out, progress, bits)
    temporary = record_file.with_suffix(".tmp")
    temporary.write_text(json.dumps(record, indent=1) + "\n")
    os.replace(temporary, record_file)
    (output / PROGRESS_FILE).unlink(missing_ok=True)
    display.note(f"{bits:.4f} bits per byte on {held_out.documents:,} held-out documents")
    display.note(f"[dim]{output}[/]")
    return record


def _record(
    plan: Pretraining,
    configuration: dict[str, Any],
    backbone: Backbone,
    training: Stream,
    held_out: Stream,
    progress: Progress,
    bits: float,
) -> dict[str, Any]:
    def described(text: Stream) -> dict[str, int]:
        return {"documents": text.documents, "bytes": text.text_bytes, "tokens": len(text.ids) - 1}

    return {
        "command": ["gradmem-bench", *sys.argv[1:]],
        "code": code_version().model_dump(),
        "environment": environment(str(backbone.device), plan.dtype).model_dump(),
        "configuration": configuration,
        "tokenizer": Path(plan.backbone.tokenizer or plan.shape.identity["tokenizer"]).name,
        "parameters": sum(parameter.numel() for parameter in backbone.model.parameters()),
        "weights_hash": weights_hash(backbone.model),
        "trained_on": described(training),
        "held_out": described(held_out),
        "bits_per_byte": bits,
        "steps": progress.step,
        "best_step": progress.best_step,
        "tokens": progress.tokens,
        "flops": progress.flops,
        "seconds": progress.seconds,
        "processes": processes.count(),
        "stopped_because": progress.stopped_because,
        "history": progress.history,
    }
