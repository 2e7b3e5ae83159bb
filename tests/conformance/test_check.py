"""What a person is told of the laws: by the command, and by pytest."""

from pathlib import Path

import pytest
import torch
from cheats import DetachesItsState, KeepsOnItself, LeavesItsBudgetUnused
from commands import command

from gradmem_bench.conformance import elsewhere, traces
from gradmem_bench.conformance.check import LAWS
from gradmem_bench.errors import UserError
from gradmem_bench.methods.mean_pool import MeanPool
from gradmem_bench.state import MemoryState
from gradmem_bench.testing import check_method, findings

BACKBONE = ["gpt2-2x32"]


def test_check_method_is_one_error_with_a_sentence_for_each_law():
    with pytest.raises(AssertionError) as error:
        check_method(BreaksTwo, {"memory_vectors": 4}, BACKBONE)
    first, *sentences = str(error.value).splitlines()
    assert first == "BreaksTwo breaks laws."
    assert [sentence.split(",")[0].strip() for sentence in sentences] == ["gradient", "budget"]
    assert "on gpt2-2x32: No gradient reaches 'scale'" in sentences[0]


class BreaksTwo(DetachesItsState, LeavesItsBudgetUnused):
    pass


def test_a_cheat_in_the_test_s_own_file_is_found_by_another_process():
    with pytest.raises(AssertionError, match="isolation, on gpt2-2x32: .* \\('memory_of_mine' changed\\)"):
        check_method(KeepsOnItselfHere, backbones=BACKBONE)


class KeepsOnItselfHere(KeepsOnItself):
    """It stands in a test's file, which is no module of any path."""


def test_where_no_process_can_be_forked_each_request_has_one_of_its_own(tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text("import os\ndel os.fork\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(elsewhere, "_FORKS", False)
    other = elsewhere.Elsewhere()
    monkeypatch.setattr(traces, "elsewhere", lambda: other)
    first = other.process
    found = {one.law.name: one for one in findings(MeanPool, {"memory_vectors": 4}, BACKBONE)}
    other.close()
    assert (found["isolation"].outcome, other.process is first) == ("pass", False), found["isolation"].sentence


def test_a_class_inside_a_function_is_not_tried_in_another_process():
    class Inside(MeanPool):
        pass

    found = {one.law.name: one for one in check_method(Inside, backbones=BACKBONE)}
    assert found["isolation"].sentence.startswith("the class stands in a function")
    assert found["swap"].sentence == found["isolation"].sentence


def test_what_a_method_raises_is_told_with_its_line():
    with pytest.raises(AssertionError, match=r"runs, .*TypeError: .*\(test_check.py, line (\d+)\)") as error:
        check_method(ForgetsThePair, backbones=BACKBONE)
    line = int(str(error.value).rpartition("line ")[2].split(")")[0])
    assert "# here" in Path(__file__).read_text().splitlines()[line - 1]


def test_what_a_broken_law_leaves_untold_names_that_one_however_far_it_is():
    found = {one.law.name: one for one in findings(ForgetsThePair, None, BACKBONE)}
    assert found["runs"].outcome == "FAIL"
    assert {one.sentence for name, one in found.items() if name != "runs"} == {"cannot be told while 'runs' is broken"}


class ForgetsThePair(MeanPool):
    def write(self, contexts):
        hidden = self.backbone.hidden(None, self.backbone.embed(contexts.ids), contexts.mask)
        return MemoryState({"memory": torch.cat([hidden, hidden])})  # here


def test_a_method_that_takes_some_backbones_is_not_tried_on_the_others():
    found = check_method(TakesLlamaAlone, backbones=["gpt2-2x32", "llama-2x32"])
    assert [(one.backbone, one.outcome) for one in found if one.law.name == "runs"] == [
        ("gpt2-2x32", "skipped"),
        ("llama-2x32", "pass"),
    ]
    assert found[0].sentence == "it refuses this backbone: Only Llama has what this method needs."


class TakesLlamaAlone(MeanPool):
    def __init__(self, backbone, parameters):
        if backbone.config.model_type != "llama":
            raise UserError("Only Llama has what this method needs.")
        super().__init__(backbone, parameters)


def test_what_cannot_be_checked_is_said_in_one_sentence():
    with pytest.raises(UserError, match="There is no method 'mean_pol'.* Did you mean 'mean_pool'"):
        check_method("mean_pol")
    with pytest.raises(UserError, match="method 'mean_pool' has no key 'vectors'"):
        check_method("mean_pool", {"vectors": 3})
    with pytest.raises(UserError, match="is no MemoryMethod"):
        check_method(int)
    with pytest.raises(UserError, match="The backbone 'nope' is no folder"):
        check_method("no_memory", backbones=["nope"])


def test_the_caller_s_random_numbers_stay():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    check_method("no_memory", backbones=BACKBONE)
    assert torch.equal(torch.rand(3), expected)


def test_the_command_prints_a_row_a_law_and_fails_when_one_is_broken(tmp_path):
    cheat = tmp_path / "cheat.yaml"
    cheat.write_text("name: cheat\nclass: cheats:ReturnsAnothersState\n")
    done = command("check", "cheat", "--include-path", tmp_path, "--backbone=gpt2-2x32", "--backbone=llama-1x32")
    assert (done.code, done.errors) == (1, "")
    verdicts = {
        line.split()[0]: line.split()[1]
        for line in done.output.splitlines()
        if line[1:2].isalpha() and len(line.split()) > 1
    }
    assert {name: verdicts[name] for name in ("bytes", "batch", "padding", "gpu")} == {
        "bytes": "pass", "batch": "FAIL", "padding": "skipped", "gpu": "skipped",
    }  # fmt: skip
    assert set(verdicts) >= {law.name for law in LAWS}
    told = " ".join(done.output.split())
    assert "Context 1 of a batch gets the state of context 3." in told
    assert "cannot be told while 'batch' is broken" in told
    skipped = {name for name, verdict in verdicts.items() if verdict == "skipped"}
    assert told.endswith(f"cheat breaks 1 of {len(LAWS)} laws; {len(skipped)} could not be tried on every backbone.")
    assert max(map(len, done.output.splitlines())) <= 80

    kept = command("check", "mean_pool", "--backbone=llama-1x32")
    assert (kept.code, kept.errors) == (0, "")
    untried = "" if torch.cuda.is_available() else "; 1 could not be tried on every backbone"
    kept_laws = len(LAWS) - bool(untried)
    assert " ".join(kept.output.split()).endswith(f"mean_pool keeps {kept_laws} of {len(LAWS)} laws{untried}.")
    assert "FAIL" not in kept.output
    assert command("check", "mean_pol").errors.endswith("Did you mean 'mean_pool'?\n")
