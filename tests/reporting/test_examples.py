import csv
import io
import re

import pytest
from commands import command
from comparisons import answers, compared_rows, tables
from records import write_run

from gradmem_bench.errors import UserError
from gradmem_bench.reporting.formats import to_csv
from gradmem_bench.results import ExampleLog, read_examples, write_record


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"example_id": "test-49-9"}, "test-49-9 is not among the second's"),
        ({"context_id": "test-48"}, "test-49-0 has another context or other targets there"),
        ({"targets": ["Zq"]}, "test-49-0 has another context or other targets there"),
    ],
)
def test_other_queries_under_the_same_hash_are_refused(tmp_path, change, sentence):
    write_run(tmp_path / "gradmem", answers(0.7, 50, 2))
    write_run(tmp_path / "rmt", answers(0.6, 50, 1), "rmt")
    rows = read_examples(tmp_path / "rmt")
    (tmp_path / "rmt" / "examples.parquet").unlink()
    log = ExampleLog(tmp_path / "rmt")
    log.append([*rows[:-1], rows[-1].model_copy(update=change)])
    log.finish()
    with pytest.raises(UserError, match=f"rmt and gradmem cannot be compared query by query: {re.escape(sentence)}"):
        tables(tmp_path, baseline="gradmem")
    assert len(tables(tmp_path)) == 1, "nothing is paired without a baseline"


def test_missing_examples_are_needed_for_a_baseline_alone(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path / str(seed), answers(0.7, 50, seed), seed=seed)
    (tmp_path / "1" / "examples.parquet").unlink()
    missing = "an examples.parquet was expected. Fetch the file, or make the run again."
    ways = {
        (): "A table with --each-seed and without --baseline needs none.",
        ("--baseline=gradmem (seed 0)", "--each-seed"): "Without --baseline it is not needed.",
    }
    for words, way in ways.items():
        errors = " ".join(command("compare", tmp_path, *words).errors.split())
        assert f"{missing} {way}" in errors
    assert set(compared_rows(tmp_path, "--each-seed")) == {"gradmem (seed 0)", "gradmem (seed 1)"}
    # A row of one seed needs its examples for a comparison alone.
    (tmp_path / "1" / "run.json").unlink()
    write_run(tmp_path / "rmt", answers(0.6, 50, 3), "rmt")
    (tmp_path / "rmt" / "examples.parquet").write_bytes(b"PAR1")
    errors = " ".join(command("compare", tmp_path, "--baseline=rmt").errors.split())
    assert "it is not Parquet" in errors
    assert "Fetch the file, or make the run again. Without --baseline it is not needed." in errors
    assert set(compared_rows(tmp_path)) == {"gradmem", "rmt"}


def test_examples_that_do_not_add_up_to_their_record_are_refused(tmp_path):
    write_run(tmp_path / "gradmem", answers(0.7, 50, 2))
    write_run(tmp_path / "rmt", answers(0.6, 50, 1), "rmt")
    (tmp_path / "rmt" / "examples.parquet").write_bytes((tmp_path / "gradmem" / "examples.parquet").read_bytes())
    with pytest.raises(UserError, match="The examples of rmt do not add up to its record: 35 of 50 are right, .* 0.6"):
        tables(tmp_path, baseline="gradmem")


def test_a_seed_whose_record_has_no_score_leaves_its_row_without_one(tmp_path):
    for seed in (0, 1):
        record = write_run(tmp_path / f"{seed}", answers(0.6, 50, seed), seed=seed)
    empty = record.metrics["exact_match"].model_copy(update=dict.fromkeys(("value", "low", "high")))
    write_record(record.model_copy(update={"metrics": record.metrics | {"exact_match": empty}}), tmp_path / "1")
    write_run(tmp_path / "rmt", answers(0.5, 50, 3), "rmt")
    [table] = tables(tmp_path, baseline="rmt")
    gradmem = next(row for row in table.rows if row.label == "gradmem")
    assert (gradmem.score, gradmem.by_seed()) == (None, [0.6, None])
    assert gradmem.versus["exact_match"].verdict is None
    assert "No exact match for gradmem: the record of seed 1 has none." in table.caption
    row = next(row for row in csv.DictReader(io.StringIO(to_csv([table]))) if row["label"] == "gradmem")
    assert (row["exact_match"], row["exact_match_by_seed"]) == ("", "0.6 nan")
