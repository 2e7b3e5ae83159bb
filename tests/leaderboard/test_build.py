import json
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
from boards import edit, write_run
from commands import command

from gradmem_bench.errors import UserError
from gradmem_bench.leaderboard.build import build
from gradmem_bench.leaderboard.paper import figures
from gradmem_bench.results import read_record


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
    (first,) = (row for row in page.rows if row[1:2] and row[1].startswith("0.750 ["))
    assert first[0].startswith("gradmem (seed 0)") and first[2:5] == ["0.732", "2 KiB", "8"]
    folds = [row[0] for row in page.rows if "Environment" in row[0]]
    assert len(folds) == 7
    assert all("cpu, float32, 2 threads" in fold and "gradmem-bench run --" in fold for fold in folds)
    assert "seed 0, 1,000 steps, 1,400,000 tokens, 71 s; 3 settings tried before" in folds[0]


def test_the_normalised_score_and_the_sizes_are_those_of_the_records(filled, tmp_path):
    page = Page(build(filled, tmp_path / "page.html"))
    data = json.loads(page.scripts[0])
    assert [table["title"] for table in data["tables"]] == ["kv_retrieval", "squad_removed"]
    rows = {row["label"]: row for row in data["tables"][0]["rows"]}
    best = next(row for label, row in rows.items() if label.startswith("gradmem") and row["score"] == 0.8)
    assert best["normalized"] == pytest.approx((48 - 4) / (60 - 4))
    assert (best["bytes"], best["positions"], best["budget"]) == (2048, 8, "8 positions")
    assert best["low"] < 0.8 < best["high"]
    assert sum(row["role"] == "floor" for row in rows.values()) == 1


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


def test_without_published_numbers_there_is_no_such_section(tmp_path):
    write_run(tmp_path / "kv_retrieval" / "gradmem-1")
    done = command("leaderboard", "build", "--board", tmp_path)
    assert (done.code, done.errors) == (0, "")
    assert done.output.startswith(f"{tmp_path / 'index.html'} (")
    assert "Published elsewhere" not in (tmp_path / "index.html").read_text()


def test_what_is_not_in_order_is_not_shown(tmp_path):
    folder = tmp_path / "kv_retrieval" / "gradmem-1"
    write_run(folder)
    edit(folder, lambda values: values["metrics"]["exact_match"].update(value=0.9))
    done = command("leaderboard", "build", "--board", tmp_path)
    assert done.code == 2 and "not in order. The mean of exact_match was changed" in done.errors
    assert not (tmp_path / "index.html").exists()


def test_an_interval_of_a_method_of_before_is_made_anew(tmp_path):
    folder = tmp_path / "kv_retrieval" / "gradmem-1"
    record = write_run(folder)
    old = {"method": "of before", "low": 0.1, "high": 0.99}
    edit(folder, lambda values: values["metrics"]["exact_match"].update(old))
    (table,) = json.loads(Page(build(tmp_path, tmp_path / "page.html")).scripts[0])["tables"]
    today = record.metrics["exact_match"]
    assert (table["rows"][0]["low"], table["rows"][0]["high"]) == (today.low, today.high)


def test_mistakes_are_said_in_a_sentence(tmp_path):
    with pytest.raises(UserError, match="There are no records below"):
        build(tmp_path, tmp_path / "page.html")
    (tmp_path / "paper").mkdir()
    (tmp_path / "paper" / "a.yaml").write_text("figure: a\nrows: [{method: x, task: y, value: 1}]\n")
    with pytest.raises(UserError, match=r"a\.yaml lacks the key 'rows\.0\.metric'"):
        list(figures(tmp_path))
