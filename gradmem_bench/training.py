"""One training loop for every method, and for a backbone, on Accelerate: curriculum, validation, early stop, resume.

What step s trains on is a function of the seed and s alone. A run that was killed therefore goes on from its last
checkpoint exactly as if it had not been.
"""

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from gradmem_bench import captured, checkpoints
from gradmem_bench.batch import Batch
from gradmem_bench.config import TrainingConfig
from gradmem_bench.errors import UserError
from gradmem_bench.flops import flop_counter
from gradmem_bench.methods.base import MemoryMethod
from gradmem_bench.prefetching import PROCESSES_FOR_A_GPU, prepared
from gradmem_bench.stages import Stage

PROGRESS_FILE = "training.safetensors"
_BATCHES_SORTED = 8
_SEED_STRIDE = 2**24
"""How far apart two seeds begin in a generated stream, in documents."""
_MULTIPLE = 8
"""Of which the widths of a ragged batch are on a GPU, where each new shape is compiled and recorded anew."""


@dataclass
class Progress:
    """All that a resumed training has to know, beside weights and moments."""

    step: int = 0
    stage: int = 0
    stage_began: int = 0
    best_score: float | None = None
    best_step: int = 0
    validations_since_best: int = 0
    stopped_because: str | None = None
    contexts: int = 0
    queries: int = 0
    tokens: int = 0
    flops: float = 0.0
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    """One row a validation: step, stage, loss, score, learning rate, contexts that were scored, seconds."""


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, total: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(total)


class Trainer:
    """Trains one method.

    Args:
        method: its parameters that require a gradient are trained.
        stages: the curriculum, easiest first.
        config: how.
        seed: of the order of the data and of which queries are asked.
        folder: where the checkpoint and the tensorboard log go.
        accelerator: device, precision and processes.
        identity: what the training is; a checkpoint of another identity is refused.
        report: called with the progress and the newest loss at each step and each validation, for the display.
    Raises:
        UserError: the processes cannot have equal shares of a batch, or there is nothing to train.
    """

    def __init__(
        self,
        method: MemoryMethod,
        stages: Sequence[Stage],
        config: TrainingConfig,
        seed: int,
        folder: Path,
        accelerator: Accelerator,
        identity: dict[str, Any],
        report: Callable[[Progress, float, bool], None],
    ) -> None:
        if config.batch_size % accelerator.num_processes:
            raise UserError(
                f"A batch of {config.batch_size} contexts cannot be shared equally by {accelerator.num_processes} "
                "processes; set training.batch_size to a multiple of them."
            )
        self.stages, self.config, self.seed, self.folder = stages, config, seed, folder
        self.accelerator, self.identity, self.report = accelerator, identity, report
        self.method = method
        self.parameters = [parameter for parameter in method.parameters() if parameter.requires_grad]
        if not self.parameters:
            raise UserError(
                f"Nothing of {type(method).__name__} requires a gradient, so that there is nothing to train: give "
                "--no-train, or put 'training: {steps: 0}' into its recipe."
            )
        optimizer = torch.optim.AdamW(
            self.parameters, lr=config.learning_rate, betas=config.betas, weight_decay=config.weight_decay
        )
        self.model, self.optimizer = accelerator.prepare(method, optimizer)
        self.progress = Progress()
        self.best: dict[str, Tensor] = {}
        self.terms: dict[str, Tensor] = {}
        self.gradient_norm = 0.0
        """Of the last step, before it was clipped."""
        self.step_flops: int | None = None
        """Of the last step that they were counted in; `None` is none yet."""

    # ------------------------------------------------------------------------------------------ resume

    def save(self) -> None:
        """Writes weights, moments, best weights and progress as one file."""
        if not self.accelerator.is_main_process:
            return
        tensors = {f"method.{name}": tensor for name, tensor in checkpoints.trained_tensors(self.method).items()}
        tensors |= {f"best.{name}": tensor for name, tensor in self.best.items()}
        for index, parameter in enumerate(self.parameters):
            for name, moment in self.optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer.{index}.{name}"] = moment
        about = {"identity": self.identity, "progress": asdict(self.progress)}
        checkpoints.save(self.folder / PROGRESS_FILE, tensors, about)

    def resume(self) -> bool:
        """Goes back to the last checkpoint in the folder, if there is one."""
        path = self.folder / PROGRESS_FILE
        if not path.exists():
            return False
        tensors, about = checkpoints.load(path)
        if about.get("identity") != self.identity:
            raise UserError(f"{path} belongs to another training; name another --output or remove it.")
        parts: dict[str, dict[str, Tensor]] = {"method": {}, "best": {}, "optimizer": {}}
        for name, tensor in tensors.items():
            part, _, rest = name.partition(".")
            parts[part][rest] = tensor
        checkpoints.restore(self.method, parts["method"], path)
        device = self.accelerator.device
        self.best = {name: tensor.to(device) for name, tensor in parts["best"].items()}
        for name, moment in parts["optimizer"].items():
            index, _, key = name.partition(".")
            state = self.optimizer.state[self.parameters[int(index)]]
            # AdamW keeps its step count on the CPU.
            state[key] = moment if key == "step" else moment.to(device)
        self.progress = Progress(**about["progress"])
        return True

    # -------------------------------------------------------------------------------------------- data

    def _indices(self, stage: Stage, step: int) -> list[int]:
        """Which examples step `step` of a stage trains on, from the seed and the step alone.

        A data set is shuffled epoch by epoch; batches are then made within stretches of a few, by length, because a
        batch costs what its longest context costs. A generated stream is never gone through twice; each seed begins
        elsewhere in it.
        """
        size, total = self.config.batch_size, len(stage)
        if stage.is_stream:
            span = total - size
            # Behind the last that fit beside one another, a multiple would come back to where another seed began.
            fits = self.seed < span // _SEED_STRIDE
            begun = self.seed * _SEED_STRIDE if fits else int(np.random.default_rng(self.seed).integers(span))
            start = (begun + step * size) % span
            return list(range(start, start + size))
        # A stretch longer than an epoch would put the copies of a document side by side, into one batch.
        count = max(1, min(_BATCHES_SORTED, total // size))
        stretch, place = divmod(step, count)
        first = stretch * count * size
        drawn: list[int] = []
        while len(drawn) < count * size:
            epoch, offset = divmod(first + len(drawn), total)
            drawn += _order(self.seed, epoch, total)[offset : offset + count * size - len(drawn)].tolist()
        drawn.sort(key=stage.length)
        batches = [drawn[start : start + size] for start in range(0, len(drawn), size)]
        # Shuffled again: the loss should not rise and fall with the length.
        return batches[np.random.default_rng([self.seed, stretch]).permutation(count)[place]]

    def _batch(self, place: tuple[int, int, int]) -> Batch:
        """The batch of (stage, step, step at which the stage began)."""
        stage_index, step, began = place
        stage = self.stages[stage_index]
        generator = np.random.default_rng([self.seed, step])
        return stage.batch(self._indices(stage, step - began), self.method, self.config, generator)

    def _batches(self) -> Iterator[Batch]:
        """The batches from the present step on."""
        several = min(PROCESSES_FOR_A_GPU, os.cpu_count() or 1)
        processes = several if self.accelerator.device.type == "cuda" else None
        while True:
            stage, began = self.progress.stage, self.progress.stage_began
            places = ((stage, step, began) for step in count(self.progress.step))
            with closing(prepared(self._batch, places, processes)) as batches:
                while stage == self.progress.stage:
                    yield next(batches)

    # ---------------------------------------------------------------------------------------- training

    def learning_rate(self, step: int) -> float:
        """The learning rate of step `step`, counted from 0; where seconds are bounded, it ends with them as well."""
        config = self.config
        warmup = min(100, config.steps // 10) if config.warmup_steps is None else config.warmup_steps
        warm = min(1.0, (step + 1) / max(1, warmup))
        done = min(1.0, max(0, step - warmup) / max(1, config.steps - warmup))
        if config.seconds is not None:
            done = min(1.0, max(done, self.progress.seconds / config.seconds))
        decay = {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}[config.schedule]
        return config.learning_rate * warm * decay

    def run(self) -> Progress:
        """Trains until the steps are done, the score is reached, or patience is at its end; keeps the best weights.

        Raises:
            UserError: the loss or its gradient is not finite; the last checkpoint stays as it was.
        """
        progress, config = self.progress, self.config
        with closing(self._batches()) as batches:
            while progress.step < config.steps and progress.stopped_because is None:
                if config.seconds is not None:
                    # The learning rate depends on them.
                    progress.seconds = self._of_first(progress.seconds)
                started = time.perf_counter()
                loss = self._step(next(batches))
                progress.step += 1
                last = progress.step == config.steps
                if config.seconds is not None:
                    spent = self._of_first(progress.seconds + time.perf_counter() - started)
                    if spent >= config.seconds:
                        last, progress.stopped_because = True, f"{config.seconds:g} seconds were spent"
                # A stage that has spent its steps ends there, wherever the next validation would have been.
                bound = self.stages[progress.stage].steps
                spent_all = bound is not None and progress.step - progress.stage_began >= bound
                validate = last or spent_all or progress.step % config.evaluate_every == 0
                if validate:
                    self._validate(loss, last)
                progress.seconds += time.perf_counter() - started
                if validate:
                    self.save()
                self.report(progress, loss, validate)
        if progress.stopped_because is None:
            progress.stopped_because = "all steps were done"
        captured.forget(self.method)
        if self.best:
            checkpoints.restore(self.method, self.best, self.folder / PROGRESS_FILE)
        return progress

    def _step(self, whole: Batch) -> float:
        config, progress = self.config, self.progress
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(progress.step)
        # FLOPs are counted once in each interval and taken for all of its steps: counting slows a step down.
        counted = self.step_flops is None or progress.step % config.evaluate_every == 0
        processes = self.accelerator.num_processes
        share = len(whole) // processes
        first, totals, terms = self.accelerator.process_index * share, [], {}
        counter = flop_counter() if counted else None
        piece = -(-share // config.accumulation_steps)
        in_parts = processes > 1 or config.accumulation_steps > 1
        with counter or nullcontext():
            for start in range(first, first + share, piece):
                batch = whole.select(start, min(first + share, start + piece)) if in_parts else whole
                if self.accelerator.device.type == "cuda":
                    batch = batch.evened(_MULTIPLE)
                batch = batch.to(self.accelerator.device)
                with sdpa_kernel(SDPBackend.MATH) if counted else self.accelerator.autocast():
                    loss = self.model(batch, whole) if in_parts else self.model(batch)
                if not loss.total.requires_grad:
                    raise UserError(
                        f"The loss does not depend on anything that {type(self.method).__name__} trains: with "
                        "these settings it has nothing to learn. Give --no-train, or train more of it."
                    )
                # Each share is a part of the whole batch's loss, and of the processes' gradients a mean is taken.
                self.accelerator.backward(loss.total * processes)
                totals.append(loss.total.detach())
                terms = {name: term + terms.get(name, 0) for name, term in loss.parts.items()}
                del loss  # What is left of its graph keeps the next one from being recorded (captured.py).
        self.terms = self.accelerator.reduce(terms)
        if counter:
            self.step_flops = counter.get_total_flops()
        progress.flops += self.step_flops * processes
        norm = self.accelerator.clip_grad_norm_(self.parameters, config.max_grad_norm)
        # Read together: each reading waits for a GPU.
        total = self.accelerator.reduce(torch.stack(totals).sum())
        total, norm = torch.stack([total, norm]).tolist()
        if not math.isfinite(total) or not math.isfinite(norm):
            kept = progress.history[-1]["step"] if progress.history else 0
            raise UserError(
                f"Training stopped at step {progress.step + 1}: the loss is {total:g} and its gradient's norm "
                f"{norm:g}; {f'the checkpoint of step {kept} stays' if kept else 'there is no checkpoint yet'}, "
                "and a lower training.learning_rate, or a smaller step of the method's own, may help."
            )
        self.gradient_norm = norm
        self.optimizer.step()
        self.optimizer.zero_grad()
        progress.contexts += len(whole)
        progress.queries += len(whole.queries)
        progress.tokens += int(whole.contexts.mask.sum() + whole.queries.mask.sum() + whole.targets.mask.sum())
        return total

    def _of_first(self, value: float) -> float:
        """The first process's value in each of them: what decides how to go on has to be one number."""
        if self.accelerator.num_processes == 1:
            return value
        return float(broadcast(torch.tensor(value, dtype=torch.float64, device=self.accelerator.device)))

    def _validate(self, loss: float, last: bool) -> None:
        progress, config = self.progress, self.config
        stage = self.stages[progress.stage]
        score = self._of_first(stage.score(self.method, config, self.accelerator.autocast))
        rate = self.learning_rate(progress.step - 1)
        row = {"step": progress.step, "stage": progress.stage, "loss": loss, "score": score, "learning_rate": rate}
        progress.history.append({**row, "contexts": stage.scored, "seconds": round(progress.seconds, 3)})
        logged = {key: value for key, value in row.items() if key != "step"}
        logged |= {f"loss/{name}": float(term) for name, term in self.terms.items()}
        logged["gradient_norm"] = self.gradient_norm
        self.accelerator.log(logged, step=progress.step)
        if stage.until is not None:
            spent = progress.step - progress.stage_began
            done = score >= stage.until or (stage.steps is not None and spent >= stage.steps)
            # A training that ends here has ended in this stage, and was never trained on the next.
            if done and not last:
                progress.stage += 1
                progress.stage_began = progress.step
                # Another task takes others; a training that goes on from here counts them anew as well.
                self.step_flops = None
                captured.forget(self.method)
            return
        best = progress.best_score
        improved = best is None or (score < best if stage.lower_is_better else score > best)
        progress.validations_since_best = 0 if improved else progress.validations_since_best + 1
        if improved or score == progress.best_score:
            # Of equal scores the later weights have seen more.
            progress.best_score, progress.best_step = score, progress.step
            self.best = {name: tensor.clone() for name, tensor in checkpoints.trained_tensors(self.method).items()}
        at_goal = config.stop_at is not None and (
            score <= config.stop_at if stage.lower_is_better else score >= config.stop_at
        )
        if at_goal:
            progress.stopped_because = f"the validation score reached {config.stop_at:g}"
        elif config.patience is not None and progress.validations_since_best >= config.patience:
            progress.stopped_because = f"{config.patience} validations brought no better score"
