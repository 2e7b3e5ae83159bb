import json
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
from boards import edit, rewrite, rows_of, seal_again, write_run
from commands import command
from records import TASK

from gradmem_bench.errors import UserError
from gradmem_bench.leaderboard.build import build
from gradmem_bench.leaderboard.check import check, summary
from gradmem_bench.paper import figures_of
from gradmem_bench.results import metric_results, read_record
from gradmem_bench.statistics import estimate


class Page(HTMLParser):
    """The tables' rows as lists of texts, all attributes by name, and the text of each script."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.attributes: dict[str, list[str]] = {}
        self.scripts: list[str] = []
        self._tag = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self._tag = tag
        for name, value in attrs:
            self.attributes.setdefault(name, []).append(value or "")
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, text: str) -> None:
        if self._tag == "script":
            self.scripts[-1] += text
        elif self.rows and self.rows[-1]:
            self.rows[-1][-1] = " ".join(f"{self.rows[-1][-1]} {text}".split())


def test_the_page_holds_every_record_with_a_link_its_command_and_its_environment(filled, tmp_path):
    path = build(filled, tmp_path / "deep" / "page.html")
    page = Page(path)
    linked = [link for link in page.attributes["href"] if link.endswith("run.json")]
    records = [read_record((path.parent / unquote(link)).resolve()) for link in linked]
    assert len({record.run_id for record in records}) == 7
    (full,) = (row for row in page.rows if row[1:2] and row[1].startswith("1.000 ["))
    assert full[0].startswith("full_kv ceiling") and full[2:5] == ["40 KiB", "1.000", "40"]
    folds = [row[0] for row in page.rows if "Environment" in row[0]]
    assert len(folds) == 6
    assert all("cpu, float32, 2 threads" in fold and "gradmem-bench run --" in fold for fold in folds)
    assert "seed 0, 1,000 steps, 1,400,000 tokens, 71 s; 3 settings tried before" in folds[0]


def test_the_seeds_of_a_method_are_one_row_that_leads_to_each_record(filled, tmp_path):
    path = build(filled, tmp_path / "page.html")
    row = next(row for row in json.loads(Page(path).scripts[0])["tables"][0]["rows"] if row["method"] == "gradmem")
    assert (row["runs"], row["score"]) == (2, pytest.approx((45 + 48) / 120))
    seeds = {one["seed"]: read_record((tmp_path / unquote(one["link"])).resolve()) for one in row["seeds"]}
    assert {seed: record.training.seed for seed, record in seeds.items()} == {0: 0, 1: 1}
    assert [one["score"] for one in row["seeds"]] == [record.metrics["exact_match"].value for record in seeds.values()]
    # The interval is that of compare: over seeds and contexts.
    scores = [[float(one.exact_match) for one in rows_of(right)] for right in (45, 48)]
    over = estimate(scores, [one.context_id for one in rows_of(45)], "proportion")
    assert (row["low"], row["high"]) == (over.low, over.high)
    (fold,) = (row[0] for row in Page(path).rows if "Seed 1" in row[0])
    assert "Seed 0: 0.750 [" in fold and "Seed 1: 0.800 [" in fold
    assert fold.count("gradmem-bench run --") == 2 and "seed 1, 1,000 steps" in fold


def test_a_table_is_ranked_by_what_its_task_is_scored_with(tmp_path):
    task = TASK.model_copy(update={"name": "drop", "own_metric": "points"})
    for method, right, own in (("gradmem", 15, 3.5), ("rmt", 45, 1.5)):
        folder = tmp_path / "drop" / f"{method}-1"
        write_run(folder, method, right, task=task)
        rows = [
            one.model_copy(update={"task_score": own + 0.5 * (index % 2)}) for index, one in enumerate(rows_of(right))
        ]
        rewrite(folder, rows)
        values = {name: found.model_dump() for name, found in metric_results(rows).items()}
        edit(folder, lambda old, values=values: old.update(metrics=values))
        seal_again(folder)
    page = Page(build(tmp_path, tmp_path / "page.html"))
    (table,) = json.loads(page.scripts[0])["tables"]
    assert table["metric"] == "points"
    assert [(row["label"], row["score"]) for row in table["rows"]] == [("gradmem", 3.75), ("rmt", 1.75)]
    assert any("Points 95 % interval" in " ".join(row) for row in page.rows)
    assert any("Ranked, normalised and compared by points" in line for line in table["caption"])


def test_the_normalised_score_and_the_sizes_are_those_of_the_records(filled, tmp_path):
    page = Page(build(filled, tmp_path / "page.html"))
    data = json.loads(page.scripts[0])
    assert [table["title"] for table in data["tables"]] == ["kv_retrieval", "squad_removed"]
    rows = {row["label"]: row for row in data["tables"][0]["rows"]}
    best = rows["gradmem"]
    assert best["normalized"] == pytest.approx((46.5 - 4) / (60 - 4))
    assert (best["bytes"], best["positions"], best["budget"]) == (2048, 8, "8 positions")
    assert best["low"] < 0.775 < best["high"]
    assert sum(row["role"] == "floor" for row in rows.values()) == 1
    # What was not run under a bound under which others were is said.
    assert data["tables"][0]["missing"] == ["gradmem at most 4 KiB"]


def test_the_page_needs_no_network_and_what_records_say_is_never_run(filled, tmp_path):
    path = build(filled, tmp_path / "page.html")
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"(src|href)=\"?(https?:)?//", text) and "@import" not in text and "url(" not in text
    # The record of a mischievous command closes no script of the page.
    assert len(Page(path).scripts) == 2
    assert "<script>alert" not in text


def test_the_papers_numbers_are_apart_and_beside_what_they_belong_to(filled, tmp_path):
    page = Page(build(filled, tmp_path / "page.html"))
    texts = [" | ".join(row) for row in page.rows]
    assert sum(text.startswith("Published elsewhere, not made or checked here") for text in texts) == 1
    # That of 4 pairs belongs to the table of 4 pairs; all three are in the figure's own.
    assert sum("0.963 [0.954, 0.972]" in text for text in texts) == 2
    assert sum("0.326" in text for text in texts) == 1
    assert sum("A paper, Fig. 3; not run" in text for text in texts) == 1
    assert "0.963" not in page.scripts[0].partition('"paper"')[0]


def test_a_published_teacher_forced_value_says_so_in_its_own_cell(tmp_path):
    write_run(tmp_path / "kv_retrieval" / "gradmem-1")
    (tmp_path / "paper").mkdir()
    (tmp_path / "paper" / "a.yaml").write_text(
        "figure: a\nrows:\n"
        "- {method: Forced, task: kv_retrieval, metric: teacher_forced_exact_match, value: 0.987}\n"
        "- {method: Generated, task: kv_retrieval, metric: exact_match, value: 0.876}\n"
    )
    rows = {row[0]: row for row in Page(build(tmp_path, tmp_path / "page.html")).rows if len(row) == 3}
    assert (rows["Forced"][1], rows["Generated"][1]) == ("teacher-forced 0.987", "0.876")


def test_without_published_numbers_there_is_no_such_section(tmp_path):
    write_run(tmp_path / "kv_retrieval" / "gradmem-1")
    done = command("leaderboard", "build", "--board", tmp_path)
    assert (done.code, done.errors) == (0, "")
    assert done.output.startswith(f"{tmp_path / 'index.html'} (")
    assert "Published elsewhere" not in (tmp_path / "index.html").read_text()


def test_what_is_not_in_order_is_not_shown(tmp_path):
    folder = tmp_path / "kv_retrieval" / "gradmem-1"
    write_run(folder)
    edit(folder, lambda values: values["metrics"]["exact_match"].update(value=0.8))
    done = command("leaderboard", "build", "--board", tmp_path)
    assert done.code == 2 and "not in order. The mean of exact_match was changed" in done.errors
    assert not (tmp_path / "index.html").exists()


def test_an_interval_of_a_method_of_before_is_made_anew(tmp_path):
    folder = tmp_path / "kv_retrieval" / "gradmem-1"
    record = write_run(folder)
    old = {"method": "of before", "low": 0.1, "high": 0.99}
    edit(folder, lambda values: values["metrics"]["exact_match"].update(old))
    seal_again(folder)
    (table,) = json.loads(Page(build(tmp_path, tmp_path / "page.html")).scripts[0])["tables"]
    today = record.metrics["exact_match"]
    assert (table["rows"][0]["low"], table["rows"][0]["high"]) == (today.low, today.high)


def test_tables_of_one_task_say_in_their_titles_by_what_they_differ_fewer_pairs_first(tmp_path):
    for pairs in (16, 4):
        task = TASK.model_copy(update={"settings": TASK.settings | {"pairs": pairs}})
        write_run(tmp_path / "kv_retrieval" / f"gradmem-{pairs}", right=pairs, task=task)
    page = build(tmp_path, tmp_path / "page.html").read_text()
    assert re.findall("<h2>(.*?) <span", page) == ["kv_retrieval, pairs 4", "kv_retrieval, pairs 16"]


def test_negative_numbers_have_a_minus(tmp_path):
    for method, right, role in (("no_memory", 20, "floor"), ("rmt", 10, "method"), ("full_kv", 50, "ceiling")):
        write_run(tmp_path / "kv_retrieval" / f"{method}-1", method, right, role)
    (table,) = json.loads(Page(build(tmp_path, tmp_path / "page.html")).scripts[0])["tables"]
    texts = {row["method"]: row["normalized_text"] for row in table["rows"]}
    assert texts == {"full_kv": "1.000", "rmt": "−0.333", "no_memory": "0.000"}


def test_the_page_counts_rows_and_every_record_that_check_counts(tmp_path):
    first = write_run(tmp_path / "kv_retrieval" / "gradmem-1")
    write_run(tmp_path / "kv_retrieval" / "gradmem-2", run_id="made-again", config_hash=first.config_hash)
    write_run(tmp_path / "kv_retrieval" / "gradmem-3", right=48, seed=1)
    assert summary(check(tmp_path)).startswith("3 records checked")
    text = " ".join(build(tmp_path, tmp_path / "page.html").read_text().split())
    assert "what 2 runs answered" in text
    assert "1 row of 3 records: a row is all seeds of one method and its settings." in text
    assert "1 record is of a run that was made again, of which the last counts." in text


def test_mistakes_are_said_in_a_sentence(tmp_path):
    with pytest.raises(UserError, match="There are no records below"):
        build(tmp_path, tmp_path / "page.html")
    (tmp_path / "paper").mkdir()
    (tmp_path / "paper" / "a.yaml").write_text("figure: a\nrows: [{method: x, task: y, value: 1}]\n")
    with pytest.raises(UserError, match=r"a\.yaml lacks the key 'rows\.0\.metric'"):
        list(figures_of(tmp_path))
