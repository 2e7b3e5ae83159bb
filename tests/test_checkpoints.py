import json
import resource

import pytest
import torch
from methods.matrix import EVERY_BACKBONE, PAIRS, build, ids_of, key_value_task
from safetensors import safe_open
from safetensors.torch import save_file

from gradmem_bench import checkpoints
from gradmem_bench.batch import Tokens
from gradmem_bench.errors import UserError
from gradmem_bench.loading import load_backbone

ABOUT = {"parameters": {"memory_vectors": 3}, "progress": {"step": 7, "best_score": None}}


def fresh(name: str, seed: int, family: str = "llama", **settings):
    """A method on a backbone of its own, every weight of it drawn from the seed."""
    config = EVERY_BACKBONE[family]
    method = build(name, load_backbone(config, key_value_task().tokenizer(), "cpu", seed), **settings)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return method


def answers(method) -> tuple[list[list[int]], list[float]]:
    on = method.backbone
    contexts, queries = Tokens.from_lists(ids_of(on, 9, 4)), Tokens.from_lists(ids_of(on, 3, 2, seed=1))
    with torch.no_grad():
        prefix = method.read(method.write(contexts))
        losses, _ = on.token_losses(prefix, queries, queries)
    return on.generate(prefix, queries, 6), losses.flatten().tolist()


@pytest.mark.parametrize(("family", "name"), PAIRS)
def test_what_was_saved_answers_as_before(tmp_path, name, family):
    path = tmp_path / "run" / "method.safetensors"
    trained = fresh(name, 1, family)
    checkpoints.save(path, checkpoints.trained_tensors(trained), ABOUT)
    other = fresh(name, 2, family)
    assert answers(other) != answers(trained)
    tensors, about = checkpoints.load(path)
    checkpoints.restore(other, tensors, path)
    assert answers(other) == answers(trained)
    assert about == ABOUT == checkpoints.read_about(path)
    assert checkpoints.method_file(path) == checkpoints.method_file(path.parent) == path
    assert [file.name for file in path.parent.iterdir()] == ["method.safetensors"]


def test_tied_weights_are_saved_once_and_stay_tied(tmp_path):
    path = tmp_path / "method.safetensors"
    trained = fresh("no_memory", 1)
    checkpoints.save(path, checkpoints.trained_tensors(trained), {})
    with safe_open(path, "pt") as file:
        shapes = [tuple(file.get_slice(name).get_shape()) for name in file.keys()]
    # Input embeddings and head are one matrix of 70 tokens by 32.
    assert shapes.count((70, 32)) == 1
    assert path.stat().st_size < 4 * sum(p.numel() for p in trained.parameters()) + 8000
    other = fresh("no_memory", 2)
    checkpoints.restore(other, checkpoints.load(path)[0], path)
    assert other.backbone.head.weight is other.backbone.model.get_input_embeddings().weight


def test_a_write_that_breaks_off_leaves_the_old_checkpoint(tmp_path):
    path = tmp_path / "method.safetensors"
    checkpoints.save(path, {"a": torch.ones(3)}, {"step": 1})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        # 400 kB do not fit: the file is cut in the middle, as a kill would cut it.
        with pytest.raises(Exception, match="(?i)file too large|os error 27"):
            checkpoints.save(path, {"a": torch.zeros(100_000)}, {"step": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    tensors, about = checkpoints.load(path)
    assert about == {"step": 1} and tensors["a"].tolist() == [1, 1, 1]


def test_what_a_kill_left_behind_is_neither_read_nor_in_the_way(tmp_path):
    path = tmp_path / "method.safetensors"
    (tmp_path / "method.safetensors.tmp").write_bytes(b"half of a file")
    with pytest.raises(UserError, match="no checkpoint .*method.safetensors"):
        checkpoints.load(path)
    checkpoints.save(path, {"a": torch.ones(3)}, {})
    assert checkpoints.load(path)[0]["a"].tolist() == [1, 1, 1]


def rewritten(path, **header) -> None:
    save_file({"a": torch.ones(3)}, path, metadata=header or None)


DAMAGE = {
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:-5]), "is damaged"),
    "empty": (lambda path: path.write_bytes(b""), "is damaged"),
    "text": (lambda path: path.write_text("a checkpoint"), "is damaged"),
    "no header": (lambda path: rewritten(path), "has schema none, but this version reads schema 1"),
    "newer": (lambda path: rewritten(path, schema_version="99", about="{}"), "has schema 99"),
    "no about": (lambda path: rewritten(path, schema_version="1"), "is damaged"),
    "about cut": (lambda path: rewritten(path, schema_version="1", about='{"step": '), "is damaged"),
    "gone": (lambda path: path.unlink(), "There is no checkpoint"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_refused_by_name(tmp_path, damage):
    path = tmp_path / "method.safetensors"
    checkpoints.save(path, {"a": torch.ones(300)}, ABOUT)
    spoil, sentence = DAMAGE[damage]
    spoil(path)
    for read in (checkpoints.load, checkpoints.read_about):
        with pytest.raises(UserError, match=sentence) as error:
            read(path)
        assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"memory_vectors": 5}, r"'memory.vectors' is \(3, 32\) there and \(5, 32\) here"),
        ({"write_head": False}, r"'write_head.weight' is \(70, 32\) there and nothing here"),
    ],
)
def test_a_checkpoint_of_another_configuration_is_refused(tmp_path, settings, sentence):
    path = tmp_path / "method.safetensors"
    checkpoints.save(path, checkpoints.trained_tensors(fresh("gradmem", 1)), ABOUT)
    other = fresh("gradmem", 2, **settings)
    before = answers(other)
    with pytest.raises(UserError, match=sentence) as error:
        checkpoints.restore(other, checkpoints.load(path)[0], path)
    assert str(path) in str(error.value)
    assert answers(other) == before


def test_what_the_file_says_of_itself_can_be_read_by_anyone(tmp_path):
    path = tmp_path / "method.safetensors"
    checkpoints.save(path, {"a": torch.arange(6.0).reshape(2, 3).T}, ABOUT)
    with safe_open(path, "pt") as file:
        assert json.loads(file.metadata()["about"]) == ABOUT
        assert file.get_tensor("a").tolist() == [[0, 3], [1, 4], [2, 5]]
