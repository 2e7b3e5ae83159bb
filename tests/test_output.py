"""A folder that cannot be written to is said in a sentence, before any work."""

import os
from pathlib import Path

import pytest
from boards import write_run
from commands import TINY, command

from gradmem_bench.errors import UserError
from gradmem_bench.output import check_writable


@pytest.fixture
def closed(tmp_path) -> Path:
    """A folder that is there and takes no file."""
    folder = tmp_path / "closed"
    if os.geteuid():
        folder.mkdir(mode=0o500)
    elif Path("/proc/self").is_dir():
        # Elsewhere root may write whatever the mode.
        folder.symlink_to("/proc/self")
    else:
        pytest.skip("needs a folder that root cannot write to")
    return folder


def test_what_can_be_written_to_is_left_as_it_is(tmp_path):
    check_writable(tmp_path)
    check_writable(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_takes_no_file_and_a_file_in_its_place_are_refused(tmp_path, closed):
    (tmp_path / "file").write_text("")
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    for folder in (closed, closed / "a", tmp_path / "file", tmp_path / "file" / "a", tmp_path / "nowhere"):
        with pytest.raises(UserError, match=f"^The folder {folder} cannot be written to: .*; name another --board.$"):
            check_writable(folder, "--board")


def refused(folder: Path, option: str, *arguments: str | Path) -> None:
    done = command(*arguments)
    assert (done.code, done.output) == (2, "")
    assert done.errors.startswith(f"error: The folder {folder} cannot be written to: ")
    assert done.errors.endswith(f"; name another {option}.\n") and done.errors.count("\n") == 1


def test_pictures_and_leaderboards_say_so(tmp_path, closed):
    run = tmp_path / "board" / "kv_retrieval" / "gradmem-1"
    record = write_run(run)
    refused(closed, "--output", "plot", run, "--output", closed)
    refused(closed, "--output", "leaderboard", "build", "--board", tmp_path / "board", "--output", closed / "page.html")
    filed = closed / "kv_retrieval" / f"gradmem-{record.config_hash[:8]}"
    refused(filed, "--board", "leaderboard", "add", run, "--board", closed)


def test_a_figure_says_so_before_anything_is_made_of_it(closed):
    refused(closed, "--output", "reproduce", "fig3", "--output", closed)


def test_a_pretraining_says_so_before_the_text_is_read(tmp_path, closed):
    (tmp_path / "texts.txt").write_text("not one batch of text")
    tokenizer = Path(__file__).parents[1] / "backbones" / "wiki_2m"
    given = ["--preset=llama_3m", "--data", tmp_path / "texts.txt", "--tokenizer", tokenizer, "--device=cpu"]
    done = command("pretrain", *given, "--output", closed)
    assert done.code == 2 and f"The folder {closed} cannot be written to" in done.errors


def test_a_runs_own_folder_is_tried_too(tmp_path, closed, monkeypatch):
    # A longer path would be folded.
    monkeypatch.chdir(tmp_path)
    arguments = ["run", "--method=no_memory", *TINY]
    facts = [line.split() for line in command(*arguments, "--dry-run").output.splitlines()]
    folder = Path(next(line[1] for line in facts if line[:1] == ["folder"]))
    folder.parent.mkdir(parents=True)
    folder.symlink_to(closed)
    done = command(*arguments)
    assert done.code == 2 and f"The folder {folder} cannot be written to" in done.errors
    assert "step" not in done.output
