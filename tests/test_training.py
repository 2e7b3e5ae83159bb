import warnings
from collections import Counter
from itertools import chain

import pytest
import torch
from trainings import Recorder, kv_task, new_method, stage, trained, trainer

from gradmem_bench import captured, checkpoints
from gradmem_bench.batch import Batch
from gradmem_bench.config import BackboneConfig
from gradmem_bench.errors import UserError
from gradmem_bench.evaluation import Evaluator
from gradmem_bench.loading import load_backbone
from gradmem_bench.methods.base import Loss
from gradmem_bench.methods.full_kv import FullKV
from gradmem_bench.methods.gradmem import GradMem, GradMemParameters
from gradmem_bench.tasks.base import Document, Query
from gradmem_bench.tasks.batching import encode_documents, training_batch
from gradmem_bench.training import PROGRESS_FILE

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.gpu
@pytest.mark.parametrize("pieces", [1, 2])
def test_on_a_gpu_a_training_is_recorded_and_is_that_of_a_cpu(tmp_path, pieces, monkeypatch):
    recorded, weights = [], []
    graphs = lambda owner: len(captured._owners[owner].graphs) if owner in captured._owners else 0  # noqa: E731
    monkeypatch.setattr(captured, "forget", lambda owner: recorded.append(graphs(owner)))
    for device in ("cpu", "cuda"):
        method = new_method(FullKV, device=device).to(device)
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            config = {"steps": 12, "evaluate_every": 6, "accumulation_steps": pieces, "learning_rate": 1e-4}
            trainer(tmp_path / device, method, [stage(method, kv_task())], device=device, **config).run()
        weights.append(torch.cat([parameter.detach().cpu().flatten() for parameter in method.parameters()]))
    assert recorded[0] == 0 < recorded[1]
    torch.testing.assert_close(weights[1], weights[0], rtol=0, atol=1e-4)


# -------------------------------------------------------------------------------------------- gradients


@pytest.fixture(scope="module")
def uneven():
    """Eight documents with one to three queries, and targets of one to four tokens."""
    return [
        Document(
            f"{row}",
            "!a:5!" * (row % 4 + 1) + "|",
            tuple(
                Query(f"{row}-{asked}", f"?!{asked}:", (str(row) * (asked + row % 2 + 1),))
                for asked in range(row % 3 + 1)
            ),
        )
        for row in range(8)
    ]


def test_accumulated_micro_batches_make_the_whole_batchs_step(tmp_path, uneven):
    moments, weights = [], []
    for pieces in (1, 4):
        method = trained(tmp_path / str(pieces), documents=uneven, steps=1, accumulation_steps=pieces)
        assert [len(batch) for batch in method.batches] == [8 // pieces] * pieces
        weights.append(torch.cat([parameter.detach().flatten() for parameter in method.parameters()]))
        tensors, _ = checkpoints.load(tmp_path / str(pieces) / PROGRESS_FILE)
        count = len(list(method.parameters()))
        moments.append(torch.cat([tensors[f"optimizer.{index}.exp_avg"].flatten() for index in range(count)]))
    torch.testing.assert_close(moments[1], moments[0], rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(weights[1], weights[0], rtol=0, atol=3e-5)

    # By hand: AdamW's first moment is a tenth of the gradient of the mean over all target tokens, clipped to norm 1.
    method = new_method()
    encoded = encode_documents(uneven, kv_task(), method.backbone)
    method.loss(training_batch(encoded, method.backbone.end_id)).total.backward()
    gradient = torch.cat([parameter.grad.flatten() for parameter in method.parameters()])
    torch.testing.assert_close(moments[0], 0.1 * gradient / max(1.0, float(gradient.norm())), rtol=1e-3, atol=1e-6)


def test_accumulated_micro_batches_rebuild_each_context_as_the_whole_batch_does(tmp_path, uneven):
    # Pieces of as many contexts have target tokens in other numbers, and what is rebuilt is a mean over contexts.
    weights, terms = [], []
    for pieces in (1, 4):
        settings = GradMemParameters(memory_vectors=2, inner_steps=1, reconstruction_weight=2.0)
        torch.manual_seed(0)
        method = GradMem(new_method().backbone, settings)
        config = {"steps": 2, "accumulation_steps": pieces, "learning_rate": 1e-3}
        found = trainer(tmp_path / str(pieces), method, [stage(method, kv_task(), uneven)], **config)
        progress = found.run()
        terms.append({name: float(term) for name, term in found.terms.items()})
        assert terms[-1]["answer"] + 2 * terms[-1]["reconstruction"] == pytest.approx(progress.history[-1]["loss"])
        weights.append(torch.cat([tensor.flatten() for tensor in checkpoints.trained_tensors(method).values()]))
    assert terms[1] == pytest.approx(terms[0], rel=1e-4)
    torch.testing.assert_close(weights[1], weights[0], rtol=0, atol=1e-4)


# ---------------------------------------------------------------------------------------- learning rate


@pytest.mark.parametrize(
    ("schedule", "expected"),
    # Four steps of warm-up, then eight, of which step 6 has two behind it, step 8 four, and step 11 seven.
    [
        ("constant", {0: 0.25, 2: 0.75, 3: 1, 4: 1, 8: 1, 11: 1}),
        ("linear", {0: 0.25, 2: 0.75, 3: 1, 4: 1, 6: 0.75, 8: 0.5, 11: 0.125}),
        ("cosine", {0: 0.25, 2: 0.75, 3: 1, 4: 1, 6: 0.853553, 8: 0.5, 11: 0.038060}),
    ],
)
def test_the_learning_rate_warms_up_and_follows_its_schedule(tmp_path, schedule, expected):
    method = new_method()
    found = trainer(
        tmp_path, method, [stage(method, kv_task())], learning_rate=2.0, warmup_steps=4, steps=12, schedule=schedule
    )
    rates = {step: found.learning_rate(step) / 2 for step in expected}
    assert rates == pytest.approx(expected, abs=1e-6)


def test_the_first_step_is_as_long_as_the_warm_up_says(tmp_path):
    before = torch.cat([parameter.detach().flatten() for parameter in new_method().parameters()])
    method = trained(tmp_path, steps=1, learning_rate=4e-3, warmup_steps=4)
    after = torch.cat([parameter.detach().flatten() for parameter in method.parameters()])
    # AdamW's first step moves each weight by the learning rate, whatever the gradient's size.
    assert float((after - before).abs().max()) == pytest.approx(1e-3, rel=1e-2)


# ------------------------------------------------------------------------------------ what is trained on


@pytest.fixture(scope="module")
def forty():
    """Forty documents, no two alike, of three lengths."""
    symbols = "0123456789abcdefghijklmnopqrstuvwxyzABCD"
    return [
        Document(symbol, "!a:5!" * (row % 3) + f"!{symbol}:7!|", (Query(symbol, f"?!{symbol}:", ("7",)),))
        for row, symbol in enumerate(symbols)
    ]


WIDE = {"alphabet": 62}


def wide_method():
    backbone = load_backbone(BackboneConfig(name="llama-1x32"), kv_task(**WIDE).tokenizer(), "cpu", 0)
    return Recorder(backbone, Recorder.Parameters())


def test_an_epoch_covers_each_document_once(tmp_path, forty):
    method = trained(tmp_path, kv_task(**WIDE), forty, wide_method(), steps=10)
    batches = method.contexts()
    everything = Counter(document.context for document in forty)
    assert Counter(chain(*batches[:5])) == Counter(chain(*batches[5:])) == everything
    assert [set(batch) for batch in batches[:5]] != [set(batch) for batch in batches[5:]]


def test_a_batch_of_a_small_data_set_holds_no_document_twice(tmp_path, forty):
    method = trained(tmp_path, kv_task(**WIDE), forty[:8], wide_method(), steps=6)
    assert {len(set(batch)) for batch in method.contexts()} == {8}
    assert len({tuple(batch) for batch in method.contexts()}) > 1


def test_batches_are_of_like_lengths_and_their_order_is_not(tmp_path, forty):
    method = trained(tmp_path, kv_task(**WIDE), forty, wide_method(), steps=5)
    lengths = [[len(context) for context in batch] for batch in method.contexts()]
    assert sum(max(batch) - min(batch) for batch in lengths) == 2 * 5  # 13 of 6, 13 of 11 and 14 of 16 in five batches
    assert lengths != sorted(lengths)


@pytest.mark.parametrize("documents", [None, "forty"])
def test_the_order_of_the_data_is_the_seeds_and_no_one_elses(tmp_path, request, documents):
    documents = documents and request.getfixturevalue(documents)
    task = kv_task(pairs=4, **WIDE)
    first, again, other = (
        trained(tmp_path / name, task, documents, wide_method(), seed, steps=6).contexts()
        for name, seed in (("first", 3), ("again", 3), ("other", 4))
    )
    assert first == again
    assert all(one != two for one, two in zip(first, other, strict=True))
    if documents is None:
        assert len(set(chain(*first, *other))) == 2 * 6 * 8  # a stream is never gone through twice


def test_seeds_beyond_those_that_fit_beside_one_another_begin_elsewhere_too(tmp_path):
    task = kv_task(pairs=4, **WIDE)
    seeds = (0, 127, 128, 129, 256)
    seen = [trained(tmp_path / str(seed), task, None, wide_method(), seed, steps=2).contexts() for seed in seeds]
    assert len({context for batches in seen for batch in batches for context in batch}) == 5 * 2 * 8


def test_queries_are_drawn_anew_for_each_context(tmp_path):
    method = trained(tmp_path, kv_task(pairs=5), steps=6, queries_per_context=2)
    places = Counter()
    for batch in method.batches:
        assert batch.context_of.tolist() == [row for row in range(8) for _ in range(2)]
        for row in range(8):
            context = method.backbone.decode(batch.contexts.rows()[row])
            asked = [method.backbone.decode(batch.queries.rows()[2 * row + number]) for number in range(2)]
            assert asked[0] != asked[1]
            places.update(context.index(query.removeprefix("?")) // 5 for query in asked)
    assert set(places) == set(range(5))
    every = trained(tmp_path / "all", kv_task(pairs=5), steps=1)
    assert len(every.batches[0].queries) == 8 * 5


def test_a_curriculum_goes_on_at_its_score_or_after_its_steps(tmp_path):
    method = new_method()
    tasks = [kv_task(), kv_task(pairs=2), kv_task(pairs=3)]
    # Two validations of a score that cannot be reached; then one of a score that any reaches.
    stages = [
        stage(method, tasks[0], until=1.0, steps=4),
        stage(method, tasks[1], until=1e-9, steps=50),
        stage(method, tasks[2]),
    ]
    found = trainer(tmp_path, method, stages, steps=30, evaluate_every=2, learning_rate=3e-3)
    progress = found.run()
    history = [row["stage"] for row in progress.history]
    reached = next(row for row in progress.history if row["stage"] == 1 and row["score"] > 0)["step"]
    assert history == [0, 0] + [1] * (reached // 2 - 2) + [2] * (15 - reached // 2)
    lengths = [batch.contexts.ids.shape[1] for batch in method.batches]
    assert lengths == [6] * 4 + [11] * (reached - 4) + [16] * (30 - reached)
    assert progress.best_step > reached  # only the task itself has a best score
    # A score that is reached with the last step leaves no step for the next stage.
    assert trainer(tmp_path / "short", method, stages[1:], steps=2, evaluate_every=2).run().stage == 0


def test_a_stage_ends_with_its_steps_between_two_validations(tmp_path):
    method = new_method()
    stages = [stage(method, kv_task(), until=1.0, steps=3), stage(method, kv_task(pairs=2))]
    progress = trainer(tmp_path, method, stages, steps=12, evaluate_every=5).run()
    assert [(row["step"], row["stage"]) for row in progress.history] == [(3, 0), (5, 1), (10, 1), (12, 1)]
    assert [batch.contexts.ids.shape[1] for batch in method.batches] == [6] * 3 + [11] * 9
    # Each step counts as one of its own stage.
    easy, task = (
        trainer(tmp_path / str(pairs), new_method(), [stage(method, kv_task(pairs=pairs))], steps=1).run().flops
        for pairs in (1, 2)
    )
    assert progress.flops == 3 * easy + 9 * task


# ---------------------------------------------------------------------------------------------- stopping


def test_training_stops_when_patience_ends(tmp_path):
    method = new_method()
    found = trainer(tmp_path, method, [stage(method, kv_task())], steps=100, learning_rate=1e-12, patience=2)
    progress = found.run()
    assert progress.step == 15  # the first validation is the best, the second and third are no better
    assert progress.stopped_because == "2 validations brought no better score"
    assert len(method.batches) == 15


def test_training_stops_at_a_score(tmp_path):
    method = new_method()
    found = trainer(tmp_path, method, [stage(method, kv_task())], steps=400, learning_rate=3e-3, stop_at=0.9)
    progress = found.run()
    *before, last = [row["score"] for row in progress.history]
    assert last >= 0.9 > max(before)
    assert progress.step == 5 * len(progress.history) < 400
    assert progress.stopped_because == "the validation score reached 0.9"


def test_training_stops_when_its_seconds_are_spent_and_the_learning_rate_ends_with_them(tmp_path):
    method = new_method()
    found = trainer(tmp_path, method, [stage(method, kv_task())], steps=10_000, seconds=0.2, schedule="linear")
    progress = found.run()
    assert progress.stopped_because == "0.2 seconds were spent"
    assert 0.2 <= progress.seconds < 20 and progress.step < 10_000
    # What was reached is validated and kept.
    assert progress.history[-1]["step"] == progress.step and (tmp_path / PROGRESS_FILE).exists()
    found.progress.seconds = 0.15
    assert found.learning_rate(2) == pytest.approx(0.25 * found.config.learning_rate)
    assert found.learning_rate(9_999) == pytest.approx(1e-4 * found.config.learning_rate)


def test_a_stage_that_is_learned_when_the_seconds_are_spent_is_the_last(tmp_path):
    method = new_method()
    stages = [stage(method, kv_task(), until=0.0), stage(method, kv_task(pairs=2))]
    progress = trainer(tmp_path, method, stages, steps=10_000, seconds=1e-9).run()
    assert (progress.step, progress.stage, progress.stopped_because) == (1, 0, "1e-09 seconds were spent")


class Spoiled(Recorder):
    """Learns for 60 batches, then climbs the loss."""

    def loss(self, batch: Batch, whole: Batch | None = None) -> Loss:
        loss = super().loss(batch, whole)
        return loss if len(self.batches) <= 60 else Loss(-loss.total)


def test_the_best_weights_are_kept(tmp_path):
    method, task = new_method(Spoiled), kv_task()
    found = trainer(tmp_path, method, [stage(method, task)], steps=90, learning_rate=3e-3)
    progress = found.run()
    scores = {row["step"]: row["score"] for row in progress.history}
    assert scores[90] < 0.5 < progress.best_score == max(scores.values())
    assert progress.best_step == max(step for step, score in scores.items() if score == progress.best_score)
    validation = encode_documents(task.documents("validation")[:32], task, method.backbone)
    assert Evaluator(method, task, 8).teacher_forced_score(validation) == progress.best_score


class Diverging(Recorder):
    """Has no loss from the eighth batch on."""

    def loss(self, batch: Batch, whole: Batch | None = None) -> Loss:
        loss = super().loss(batch, whole)
        return loss if len(self.batches) < 8 else Loss(loss.total * float("nan"))


def test_a_loss_that_is_not_finite_stops_training_and_leaves_the_last_good_checkpoint(tmp_path):
    method = new_method(Diverging)
    found = trainer(tmp_path / "diverged", method, [stage(method, kv_task())], steps=20)
    with pytest.raises(UserError, match="stopped at step 8: the loss is nan .* checkpoint of step 5 stays"):
        found.run()
    kept, about = checkpoints.load(tmp_path / "diverged" / PROGRESS_FILE)
    assert about["progress"]["step"] == 5
    trained(tmp_path / "short", steps=5)
    good, _ = checkpoints.load(tmp_path / "short" / PROGRESS_FILE)
    assert kept.keys() == good.keys()
    assert all(torch.equal(kept[name], good[name]) for name in good)

    early = new_method(Diverging)
    found = trainer(tmp_path / "early", early, [stage(early, kv_task())], steps=20, evaluate_every=10)
    with pytest.raises(UserError, match="stopped at step 8: .* there is no checkpoint yet"):
        found.run()
    assert not (tmp_path / "early" / PROGRESS_FILE).exists()


def test_a_checkpoint_of_another_training_is_refused(tmp_path):
    method = trained(tmp_path, steps=5)
    found = trainer(tmp_path, method, [stage(method, kv_task())], steps=10)
    assert found.resume()
    assert found.progress.step == 5
    found.identity = {"of": "another test"}
    with pytest.raises(UserError, match="training.safetensors belongs to another training"):
        found.resume()


def test_where_there_is_nothing_to_train_or_the_loss_has_nothing_of_it_one_sentence_says_so(tmp_path):
    frozen = new_method(FullKV).requires_grad_(False)
    with pytest.raises(UserError, match="Nothing of FullKV requires a gradient.*--no-train"):
        trainer(tmp_path / "frozen", frozen, [stage(frozen, kv_task())], steps=1)
    backbone = load_backbone(BackboneConfig(name="llama-1x32"), kv_task().tokenizer(), "cpu", 0)
    # Neither WRITE nor READ passes anything on to the start of the memory and to WRITE's head, which are all there is.
    idle = GradMem(backbone, GradMemParameters(freeze_backbone=True, order="none"))
    with pytest.raises(UserError, match="does not depend on anything that GradMem trains"):
        trainer(tmp_path / "idle", idle, [stage(idle, kv_task())], steps=1).run()
