"""Making a planned run: train or load, WRITE and READ every example, measure, and leave a record behind."""

import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from gradmem_bench import checkpoints, processes
from gradmem_bench.backbone import Backbone
from gradmem_bench.config import Budget
from gradmem_bench.errors import UserError
from gradmem_bench.evaluation import Evaluator
from gradmem_bench.experiment import curriculum_tasks, longest_context, room_beside
from gradmem_bench.loading import load_backbone, tokenizer_text, weights_hash
from gradmem_bench.measurement import capacity, measure, measured_footprint
from gradmem_bench.methods.base import MemoryMethod
from gradmem_bench.metrics import normalized
from gradmem_bench.output import check_writable
from gradmem_bench.plan import Plan
from gradmem_bench.precision import accelerator_for
from gradmem_bench.reporting.progress import RunDisplay
from gradmem_bench.results import (
    BackboneRecord,
    Costs,
    ExampleLog,
    ExampleRow,
    MethodRecord,
    ProfileRecord,
    RunRecord,
    SourceRecord,
    SwapTest,
    TaskRecord,
    TrainedOn,
    TrainingRecord,
    code_version,
    environment,
    metric_results,
    read_record,
    seal,
    write_record,
)
from gradmem_bench.stages import TrainingStage, is_stream
from gradmem_bench.swap import closed_book, swap_test
from gradmem_bench.tasks.base import Task
from gradmem_bench.tasks.batching import EncodedDocument, check_contexts, encode_documents
from gradmem_bench.tasks.identity import elsewhere, trained_on
from gradmem_bench.tasks.lengths import asked_tokens
from gradmem_bench.training import PROGRESS_FILE, Progress, Trainer

_SWAPPED_DOCUMENTS = 64
_EVALUATION_BATCH = 32
_PROFILED_DOCUMENTS = 200
"""Among so many the costs of those of median length are measured."""


def perform(plan: Plan, output: Path, display: RunDisplay) -> RunRecord | None:
    """Makes the run in its own folder below `output`, or what is missing of it; `None` in a process that only trains.

    Raises:
        UserError: the folder cannot be written to or a file in it is damaged, training diverged, or a state broke its
            budget.
    """
    code_version()  # What the record will name is what is loaded now.
    folder = plan.folder(output)
    if processes.already_made(folder / "run.json", plan.options.device):
        display.note(f"done before, in {folder}")
        return read_record(folder / "run.json")
    check_writable(folder)
    accelerator, method, initial_checkpoint = _prepared(plan, folder)
    backbone = method.backbone
    # Before hours of training: a context, or a query with its answer, may be too long.
    documents = plan.task.documents(plan.split)[: plan.options.limit]
    room = room_beside(plan.method_class, plan.parameters, backbone, plan.task, documents)
    encoded = encode_documents(documents, plan.task, backbone, min(plan.max_context_tokens, room))
    source, stages = None, []
    if plan.training is not None:
        source = _trained_before(plan, folder)
        stages = [] if source else _stages(plan, backbone, display)
    folder.mkdir(parents=True, exist_ok=True)
    training = _trained(plan, method, source, stages, folder, accelerator, display, initial_checkpoint)
    if not processes.is_first():
        return None
    evaluator = Evaluator(method, plan.task, _EVALUATION_BATCH, plan.budget, accelerator.autocast)
    with display.working("which queries were trained on"):
        seen = plan.task.seen_in_training(plan.split)
    # Before anything of them is written.
    with display.working("what is answered without memory"):
        known = closed_book(evaluator, encoded[:_SWAPPED_DOCUMENTS])
    rows = _evaluated(evaluator, encoded, seen, folder, plan.config_hash, display)
    with display.working("swap test"):
        swap = swap_test(evaluator, encoded[:_SWAPPED_DOCUMENTS], known)
    with display.measuring() as report:
        costs, _ = measure(evaluator, encoded, report)
    record = _record(plan, evaluator, rows, swap, costs, training)
    write_record(record, folder)
    display.finished(record, folder)
    return record


def profile(plan: Plan, batch_size: int, display: RunDisplay) -> ProfileRecord:
    """What the planned method costs on its task, at so many contexts or queries together; nothing is trained or kept.

    Raises:
        UserError: a state broke its budget, or a context is too long.
    """
    accelerator, method, _ = _prepared(plan, None)
    sample = plan.task.documents(plan.split)[: min(_PROFILED_DOCUMENTS, plan.options.limit or _PROFILED_DOCUMENTS)]
    encoded = encode_documents(sample, plan.task, method.backbone, plan.max_context_tokens)
    evaluator = Evaluator(method, plan.task, batch_size, plan.budget, accelerator.autocast)
    with display.measuring() as report:
        costs, footprint = measure(evaluator, encoded, report)
    return ProfileRecord(
        command=["gradmem-bench", *sys.argv[1:]],
        code=code_version(),
        method=_method_record(plan),
        task=plan.task.name,
        backbone=_backbone_record(method.backbone),
        budget=plan.budget if plan.budget != Budget() else None,
        footprint=footprint,
        costs=costs,
        environment=environment(str(method.backbone.device), plan.options.dtype),
    )


def _prepared(plan: Plan, folder: Path | None) -> tuple[Accelerator, MemoryMethod, str | None]:
    """The method with its weights, in its place; and what to say of the checkpoint they are from."""
    options = plan.options
    accelerator = accelerator_for(options.device, options.dtype, folder)
    torch.manual_seed(options.seed)
    backbone = load_backbone(plan.backbone, plan.task.tokenizer(), str(accelerator.device), options.seed)
    method = plan.method_class(backbone, plan.parameters).to(accelerator.device)
    if plan.checkpoint is None:
        return accelerator, method, None
    tensors, about = checkpoints.load(plan.checkpoint, str(accelerator.device))
    began, here = about["backbone_weights_hash"], backbone.identity["weights_hash"]
    if began != here and not (began.startswith("random-") and here.startswith("random-")):
        raise UserError(
            f"{plan.checkpoint} was trained from other backbone weights ({began}) than {plan.backbone.name} has "
            f"({here}); name that backbone with --backbone, or train again."
        )
    checkpoints.restore(method, tensors, plan.checkpoint)
    start = "/".join(plan.checkpoint.parts[-2:])
    return accelerator, method, f"{start} (weights {about['hash']}, {about['training']['steps']} steps)"


# -------------------------------------------------------------------------------------------- training


def _trained(
    plan: Plan,
    method: MemoryMethod,
    source: Path | None,
    stages: Sequence[TrainingStage],
    folder: Path,
    accelerator: Accelerator,
    display: RunDisplay,
    initial_checkpoint: str | None,
) -> TrainingRecord | None:
    config = plan.training
    path = folder / checkpoints.METHOD_FILE
    if config is None:
        # What was loaded had been trained: its figures belong to the result (design law 4).
        return TrainingRecord(**checkpoints.read_about(plan.checkpoint)["training"]) if plan.checkpoint else None
    if source is not None:
        tensors, about = checkpoints.load(source, str(accelerator.device))
        checkpoints.restore(method, tensors, source)
        training = TrainingRecord(**about["training"])
        where = "" if source == path else f", in {source.parent.name}"
        display.note(f"trained before{where}: {training.steps} steps")
        if source != path and processes.is_first():
            checkpoints.share(source, path)
    else:
        identity = {"config_hash": plan.config_hash}
        method.settings = plan.trained_parameters
        with display.training(config) as report:
            trainer = Trainer(method, stages, config, plan.options.seed, folder, accelerator, identity, report)
            accelerator.init_trackers("tensorboard")
            if trainer.resume():
                display.note(f"goes on from the checkpoint of step {trainer.progress.step}")
            progress = trainer.run()
            for tracker in accelerator.trackers:
                tracker.finish()
        method.settings = plan.parameters
        training = _training_record(plan, method, progress, initial_checkpoint)
        if processes.is_first():
            save_method(plan, method, training, progress, path)
        # Each of them looks for it before the next training.
        accelerator.wait_for_everyone()
    if processes.is_first():
        (folder / PROGRESS_FILE).unlink(missing_ok=True)
    return training


def _trained_before(plan: Plan, folder: Path) -> Path | None:
    """The checkpoint in `folder`, or beside it that of a run whose training was this one's: they differ in the
    evaluation alone."""
    own = folder / checkpoints.METHOD_FILE
    if own.exists():
        return own
    for path in sorted(folder.parent.glob(f"{plan.recipe.name}-*/{checkpoints.METHOD_FILE}")):
        try:
            about = checkpoints.read_about(path)
        except UserError:
            # Its own run says so.
            continue
        if about.get("training_hash") == plan.training_hash:
            return path
    return None


def _training_record(
    plan: Plan, method: MemoryMethod, progress: Progress, initial_checkpoint: str | None
) -> TrainingRecord:
    return TrainingRecord(
        steps=progress.step,
        contexts=progress.contexts,
        queries=progress.queries,
        tokens=progress.tokens,
        flops=progress.flops,
        seconds=progress.seconds,
        processes=processes.count(),
        seed=plan.options.seed,
        task=TrainedOn(**trained_on(plan.task)),
        tuned_trials=plan.training.tuned_trials,
        trained_parameters=sum(parameter.numel() for parameter in method.parameters() if parameter.requires_grad),
        config=plan.training.model_dump(mode="json"),
        initial_checkpoint=initial_checkpoint,
        best_validation_score=progress.best_score,
        best_step=progress.best_step if progress.best_score is not None else None,
        stopped_because=progress.stopped_because or "",
        last_stage=progress.stage + 1,
    )


def _trained_elsewhere(plan: Plan, training: TrainingRecord | None) -> str:
    task = training and training.task and training.task.model_dump()
    if training and task is None and plan.training is None:
        # A checkpoint from before it was kept says the name alone.
        task = {"name": checkpoints.read_about(plan.checkpoint)["task"]}
    return elsewhere(task, plan.task) if task else ""


def _stages(plan: Plan, backbone: Backbone, display: RunDisplay) -> list[TrainingStage]:
    """The curriculum's tasks and, last, the task itself; each with a validation set of its own.

    Raises UserError where a context to train on is too long, unless they are a generated stream, which has no end.
    """

    def stage(task: Task, until: float | None, steps: int | None) -> TrainingStage:
        room = longest_context(plan.method_class, plan.parameters, backbone, asked_tokens(task, backbone))
        documents = task.documents("train")
        held_out = task.documents("validation")[: plan.training.validation_contexts]
        if not is_stream(documents):
            with display.working("how long the training queries are"):
                asked = chain(documents, held_out)
                room = min(room, room_beside(plan.method_class, plan.parameters, backbone, task, asked))
        made = TrainingStage(task, documents, encode_documents(held_out, task, backbone, room), room, until, steps)
        if not (made.is_stream or task.truncate_contexts):
            with display.working("how long the training contexts are"):
                check_contexts(made.documents, task, backbone, room)
        return made

    easier = [
        stage(task, one.until, one.steps)
        for task, one in zip(curriculum_tasks(plan.task, plan.training), plan.training.curriculum, strict=True)
    ]
    return [*easier, stage(plan.task, None, None)]


def save_method(plan: Plan, method: MemoryMethod, training: TrainingRecord, progress: Progress, path: Path) -> None:
    """The trained weights, with all that is needed to build the method again."""
    about: dict[str, Any] = {
        "method": plan.recipe.name,
        "class": plan.recipe.implementation,
        "parameters": plan.parameters.model_dump(mode="json", exclude=plan.method_class.evaluation_parameters),
        "backbone": plan.backbone.model_dump(mode="json", exclude_unset=True),
        "backbone_weights_hash": method.backbone.identity["weights_hash"],
        "task": plan.task.name,
        "seed": plan.options.seed,
        "tokenizer": tokenizer_text(plan.task.tokenizer()),
        "hash": weights_hash(method),
        "training_hash": plan.training_hash,
        "training": training.model_dump(mode="json"),
        "history": progress.history,
    }
    checkpoints.save(path, checkpoints.trained_tensors(method), about)


# ------------------------------------------------------------------------------------------ evaluation


def _evaluated(
    evaluator: Evaluator,
    encoded: Sequence[EncodedDocument],
    seen: frozenset[str] | None,
    folder: Path,
    key: str,
    display: RunDisplay,
) -> list[ExampleRow]:
    log = ExampleLog(folder, key)
    # Whole batches of all documents, whatever was done before: in another batch a row may differ in its last digit.
    missing = [
        batch
        for batch in evaluator.batches(encoded)
        if any(query.id not in log.rows for document in batch for query in document.document.queries)
    ]
    with display.evaluation(len(encoded), len(encoded) - sum(map(len, missing))) as advance:
        for batch in missing:
            made = evaluator.rows(batch)
            if seen is not None:
                made = [row.model_copy(update={"seen_in_training": row.example_id in seen}) for row in made]
            log.append(made)
            advance(len(batch))
    rows = log.rows
    log.finish()
    return [rows[query.id] for document in encoded for query in document.document.queries]


def _method_record(plan: Plan) -> MethodRecord:
    return MethodRecord(
        name=plan.recipe.name,
        implementation=plan.recipe.implementation,
        package=plan.package,
        source_hash=plan.source_hash,
        parameters=plan.parameters.model_dump(mode="json"),
        role=plan.method_class.role,
        citation=plan.recipe.citation,
        own_backbone=plan.method_class.needs == "recurrence",
    )


def _backbone_record(backbone: Backbone) -> BackboneRecord:
    return BackboneRecord(
        **backbone.identity,
        family=backbone.config.model_type,
        parameter_count=sum(parameter.numel() for parameter in backbone.model.parameters()),
    )


def _record(
    plan: Plan,
    evaluator: Evaluator,
    rows: Sequence[ExampleRow],
    swap: SwapTest,
    costs: Costs,
    training: TrainingRecord | None,
) -> RunRecord:
    options, configuration = plan.options, plan.configuration()
    created = datetime.now(UTC)
    contexts = list({row.context_id: row for row in rows}.values())
    footprint = measured_footprint(
        [row.state_bytes for row in contexts],
        [row.read_positions for row in contexts],
        [row.context_tokens for row in contexts],
        evaluator.kv_bytes_per_position(),
        plan.budget.state_dtype,
    )
    metrics = metric_results(rows)
    task = TaskRecord(
        name=plan.task.name,
        version=configuration["task"]["version"],
        settings=configuration["task"]["settings"],
        declaration_hash=plan.task_hashes and plan.task_hashes.whole,
        normalized_answers=plan.task.text_metrics,
        answer_words=max((len(normalized(target).split()) for row in rows for target in row.targets), default=0),
        own_metric=plan.task.own_metric,
        split=plan.split,
        source=SourceRecord(**vars(plan.task.source(plan.split))),
        limit=options.limit,
        contexts=len(contexts),
        queries=len(rows),
        truncated_contexts=sum(row.context_truncated for row in contexts),
    )
    record = RunRecord(
        run_id=f"{plan.task.name}-{plan.recipe.name}-{created:%Y%m%dT%H%M%S}-{plan.config_hash[:8]}",
        created=created.isoformat(timespec="seconds"),
        command=["gradmem-bench", *sys.argv[1:]],
        config_hash=plan.config_hash,
        code=code_version(),
        method=_method_record(plan),
        task=task,
        backbone=_backbone_record(evaluator.backbone),
        budget=plan.budget if plan.budget != Budget() else None,
        footprint=footprint,
        metrics=metrics,
        swap_test=swap,
        costs=costs,
        capacity=capacity(plan.task, metrics["exact_match"], footprint.state_bytes.mean),
        training=training,
        trained_elsewhere=_trained_elsewhere(plan, training),
        seed=options.seed,
        environment=environment(str(evaluator.backbone.device), options.dtype),
    )
    return record.model_copy(update={"seal": seal(rows, record)})
