"""Small trainings, for the tests of whatever is seen of one."""

import torch
from accelerate.state import AcceleratorState

from gradmem_bench.batch import Batch
from gradmem_bench.config import BackboneConfig, TrainingConfig
from gradmem_bench.loading import load_backbone
from gradmem_bench.methods.base import Loss
from gradmem_bench.methods.full_kv import FullKV
from gradmem_bench.precision import accelerator_for
from gradmem_bench.registry import recipe_folder
from gradmem_bench.stages import TrainingStage
from gradmem_bench.tasks.batching import encode_documents
from gradmem_bench.tasks.declaration import load_task
from gradmem_bench.training import Trainer

SMALL = {"pairs": 1, "key_length": 1, "value_length": 1, "alphabet": 8}


class Recorder(FullKV):
    """A full KV cache that keeps every training batch it was given."""

    def __init__(self, backbone, parameters):
        super().__init__(backbone, parameters)
        self.batches: list[Batch] = []

    def loss(self, batch: Batch, whole: Batch | None = None) -> Loss:
        self.batches.append(batch)
        return super().loss(batch, whole)

    def contexts(self) -> list[list[str]]:
        return [[self.backbone.decode(row) for row in batch.contexts.rows()] for batch in self.batches]


def kv_task(**settings):
    return load_task(recipe_folder("task") / "kv_retrieval.yaml", SMALL | settings)


def new_method(method_class=Recorder, seed=0, device="cpu"):
    torch.manual_seed(seed)
    backbone = load_backbone(BackboneConfig(name="llama-1x32", init_std=0.1), kv_task().tokenizer(), device, seed)
    return method_class(backbone, method_class.Parameters())


def stage(method, task, documents=None, until=None, steps=None):
    validation = encode_documents(task.documents("validation")[:32], task, method.backbone)
    return TrainingStage(
        task, task.documents("train") if documents is None else documents, validation, 100, until, steps
    )


def trainer(folder, method, stages, seed=0, device="cpu", **config) -> Trainer:
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = accelerator_for(device, "float32", folder)
    accelerator.init_trackers("tensorboard")
    values = {"batch_size": 8, "warmup_steps": 0, "evaluate_every": 5, **config}
    return Trainer(
        method, stages, TrainingConfig(**values), seed, folder, accelerator, {"of": "this test"}, lambda *shown: None
    )


def trained(folder, task=None, documents=None, method=None, seed=0, **config) -> Recorder:
    method = method or new_method()
    trainer(folder, method, [stage(method, task or kv_task(), documents)], seed, **config).run()
    return method
