"""What a training says of itself: tokens, FLOPs, and its curve."""

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from trainings import kv_task, new_method, stage, trainer

from gradmem_bench import checkpoints
from gradmem_bench.methods.gradmem import GradMem, GradMemParameters

pytestmark = pytest.mark.usefixtures("one_thread")


def test_tokens_queries_and_flops_are_counted(tmp_path):
    method = new_method()
    progress = trainer(tmp_path, method, [stage(method, kv_task(pairs=2))], steps=10).run()
    assert (progress.contexts, progress.queries) == (80, 160)
    # A context `!a:1!!b:2!|`; a query `?!a:`, a target and the end of text.
    assert progress.tokens == 80 * 11 + 160 * (4 + 2)
    # Two operations a weight of the layer's matrices forward, and four backward; but of a context only keys and values
    # (2 x 32 x 32 weights) are used by anything. Each query row sees 16 positions: its last token is not run.
    layer = 4 * 32 * 32 + 3 * 32 * 128
    contexts = 80 * 11 * (2 * layer + 4 * 2 * 32 * 32 + 4 * 11 * 32)
    queries = 160 * 5 * (6 * layer + 12 * 16 * 32)
    # The head of each of two tokens in its closed form: the logits twice, and a gradient each for input and weights.
    head = 160 * 2 * 8 * 16 * 32
    assert progress.flops == contexts + queries + head


def test_the_flops_of_a_training_that_ends_with_its_seconds_are_of_the_steps_that_were_made(tmp_path):
    flops = {}
    for name, config in {"one": {"steps": 1}, "spent": {"steps": 1000, "seconds": 1e-9}}.items():
        method = new_method()
        progress = trainer(tmp_path / name, method, [stage(method, kv_task())], evaluate_every=200, **config).run()
        assert progress.step == 1
        flops[name] = progress.flops
    assert flops["spent"] == flops["one"] > 0


def test_layers_that_are_run_again_are_trained_alike_and_their_flops_counted(tmp_path):
    found = []
    for checkpointing in (False, True):
        backbone = new_method().backbone
        settings = GradMemParameters(inner_steps=2, order="first", gradient_checkpointing=checkpointing)
        torch.manual_seed(0)
        method = GradMem(backbone, settings)
        progress = trainer(tmp_path / str(checkpointing), method, [stage(method, kv_task())], steps=5).run()
        found.append((progress.flops, checkpoints.trained_tensors(method)))
    assert 1.2 * found[0][0] < found[1][0] < 1.5 * found[0][0]
    for name, tensor in found[0][1].items():
        torch.testing.assert_close(found[1][1][name], tensor, rtol=1e-3, atol=1e-4)


def test_the_log_holds_the_training_curve(tmp_path):
    method = new_method()
    found = trainer(tmp_path, method, [stage(method, kv_task())], steps=15, learning_rate=3e-3)
    progress = found.run()
    found.accelerator.end_training()
    log = EventAccumulator(str(tmp_path / "tensorboard"))
    log.Reload()
    for name in ("loss", "score", "learning_rate"):
        logged = [(event.step, event.value) for event in log.Scalars(name)]
        assert logged == [(row["step"], pytest.approx(row[name])) for row in progress.history]
    # The whole loss of this method is its answers'.
    terms = [event.value for event in log.Scalars("loss/answer")]
    assert terms == pytest.approx([row["loss"] for row in progress.history])
