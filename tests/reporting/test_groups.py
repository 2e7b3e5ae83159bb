from shutil import copytree, rmtree

import pytest
from commands import command
from comparisons import answers, caption, changed, compared_rows
from records import BACKBONE, TASK, TRAINING, demo_records, metric, run_record, write_run

from gradmem_bench.errors import UserError
from gradmem_bench.reporting.comparison import comparison


def source(**changes):
    return {"task": changed(TASK, source=changed(TASK.source, **changes))}


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        (source(content_hash="ffff"), r"data hash \(9e8d7c6b5a9e… and ffff\)"),
        (source(revision="abc"), r"data revision \(none and abc\)"),
        ({"task": changed(TASK, version="2")}, r"task version \(1 and 2\)"),
        ({"task": changed(TASK, declaration_hash="5e1f")}, r"declaration \(none and 5e1f\)"),
        ({"task": changed(TASK, split="validation")}, r"split \(test and validation\)"),
        ({"task": changed(TASK, limit=None)}, r"limit \(128 and none\)"),
        ({"task": changed(TASK, settings={"pairs": 8, "alphabet": 16})}, r"task setting pairs \(4 and 8\)"),
        ({"backbone": changed(BACKBONE, weights_hash="0")}, r"backbone weights \(3fa2c1d4e53f… and 0\)"),
        (
            {"metrics": {"exact_match": changed(metric("exact_match", [0.0] * 512), version=2)}},
            r"version of exact_match \(1 and 2\)",
        ),
    ],
)
def test_what_does_not_compare_is_refused_or_set_apart(changes, difference):
    stranger = run_record("stranger", run_id="stranger-1", **changes)
    records = [*demo_records(), stranger]
    with pytest.raises(UserError, match=difference) as caught:
        comparison(records)
    assert "no_memory-564f3a9f, rmt-4dd7734f, gradmem-7b8265bc and 2 more against stranger-" in str(caught.value)
    assert "--by config" in str(caught.value)
    tables = comparison(records, by="config")
    assert [len(table.rows) for table in tables] == [5, 1]


def test_a_record_from_before_seen_queries_were_counted_stands_beside_one_that_counts_them():
    older, newer = run_record("rmt"), run_record(right=300)
    unseen = metric("unseen_exact_match", [1.0] * 128 + [0.0] * 384)
    newer = changed(newer, metrics=newer.metrics | {"unseen_exact_match": changed(unseen, n=500)})
    [table] = comparison([older, newer])
    assert len(table.rows) == 2
    assert (
        "12 of the 512 queries stand in the training data too, with their contexts. Exact match of the 500 others: "
        f"gradmem 0.250 [{unseen.low:.3f}, {unseen.high:.3f}]."
    ) in table.caption


def test_tables_of_one_task_come_with_fewer_pairs_first():
    def of(pairs):
        return run_record(f"with_{pairs}", task=changed(TASK, settings={"pairs": pairs, "alphabet": 16}))

    titles = [table.title for table in comparison([of(pairs) for pairs in (4, 16, 2, 8)], by="config")]
    assert [title.rpartition(" ")[2] for title in titles] == ["2", "4", "8", "16"]


def test_all_sets_that_do_not_compare_are_told_and_titled_by_what_they_differ_in():
    def of(name, settings=None, limit=128, tokenizer="kv_retrieval", **source):
        task = changed(TASK, settings=settings or TASK.settings, limit=limit, source=changed(TASK.source, **source))
        return run_record(name, task=task, backbone=changed(BACKBONE, tokenizer=tokenizer))

    sets = [of("a"), of("b", limit=None), of("c", {"pairs": 8, "alphabet": 16}, content_hash="ffff"), of("a2")]
    with pytest.raises(UserError) as caught:
        comparison([*sets, of("d", tokenizer="")])
    said = str(caught.value)
    names = [f"{one.method.name}-{one.config_hash[:8]}" for one in sets]
    assert f"{names[0]} and {names[3]} against {names[1]} against d-" in said
    assert f" against {names[2]}; --by config" in said
    assert "task setting pairs (4 and 8), data hash (9e8d7c6b5a9e… and ffff), limit (128 and none)" in said
    assert "tokenizer (kv_retrieval and none)" in said
    assert [table.title for table in comparison(sets, by="config")] == [
        "kv_retrieval · llama-2x64 · pairs 4, limit 128",
        "kv_retrieval · llama-2x64 · pairs 4, limit none",
        "kv_retrieval · llama-2x64 · pairs 8, limit 128",
    ]
    data = [of("a"), of("b", content_hash="ffff")]
    assert [table.title.rpartition(" · ")[2] for table in comparison(data, by="config")] == [
        "data hash 9e8d7c6b5a9e…",
        "data hash ffff",
    ]
    assert comparison([of("a")], by="config")[0].title == "kv_retrieval · llama-2x64"


def test_a_method_that_is_a_language_model_itself_stands_beside_the_others():
    own = changed(BACKBONE, name="mamba-2x64", family="mamba", weights_hash="0", tokenizer="another")

    def itself(**changes):
        record = run_record("mamba", **{"right": 300, "backbone": own, **changes})
        return changed(record, method=changed(record.method, own_backbone=True))

    mamba = itself()
    for by in ("task", "config"):
        [table] = comparison([mamba, *demo_records()], by=by)
        assert [row.label for row in table.rows][1:5] == ["gradmem", "rmt", "mamba", "truncated_text"]
        assert table.title == "kv_retrieval · llama-2x64"
        assert "Backbone llama-2x64: llama, 115,008 parameters" in caption(table)
        assert "mamba is a language model itself: mamba-2x64: mamba, 115,008 parameters, weights 0." in caption(table)
    smaller = itself(
        right=200, backbone=changed(own, name="mamba-1x64", weights_hash="1"), training=changed(TRAINING, seed=1)
    )
    assert len({row.recipe for row in comparison([smaller, mamba])[0].rows}) == 2, "no seeds of one method"
    smaller = changed(smaller, training=TRAINING)
    [table] = comparison([smaller, mamba])
    assert [row.label for row in table.rows] == ["mamba (backbone mamba-2x64)", "mamba (backbone mamba-1x64)"]
    # Other data set it apart as they do any method.
    with pytest.raises(UserError, match="data hash"):
        comparison([*demo_records(), itself(**source(content_hash="ffff"))])


def test_each_task_has_its_table_and_a_wrong_by_is_named():
    other = run_record(task=changed(TASK, name="babi_qa1"))
    assert [table.title.split()[0] for table in comparison([*demo_records(), other])] == ["babi_qa1", "kv_retrieval"]
    with pytest.raises(UserError, match="--by confg: there is no such grouping. Did you mean 'config'"):
        comparison([], by="confg")


def test_a_run_that_was_found_twice_counts_once():
    first, second = run_record(right=400), run_record(right=300, training=changed(TRAINING, seed=1))
    [table] = comparison([first, second, first.model_copy(deep=True)])
    assert [row.label for row in table.rows] == ["gradmem (seed 0)", "gradmem (seed 1)"]
    again = changed(first, run_id="again", created="2027-01-01T00:00:00+00:00", command=["gradmem-bench"])
    [table] = comparison([first, again])
    assert [row.label for row in table.rows] == ["gradmem"], "made again with the same numbers"
    assert "more than once" not in caption(table)
    other = run_record(right=3, run_id="other")
    [table] = comparison([first, changed(other, run_id=first.run_id)])
    assert [row.score for row in table.rows] == [3 / 512]
    assert f"Found more than once, with unlike records, of which the last counts: {first.run_id}." in table.caption
    [table] = comparison([other, first, second])
    assert [row.score for row in table.rows] == [400 / 512, 300 / 512]
    assert f"of which the last counts: {first.run_id} (also other)." in caption(table)


def test_the_same_run_in_two_folders_is_counted_once(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path / "runs" / f"gradmem-{seed}", answers(0.6, 100, seed), seed=seed)
    copytree(tmp_path / "runs", tmp_path / "filed")
    [row] = compared_rows(tmp_path / "runs", tmp_path / "filed").values()
    assert row["seeds"] == "0 1"
    # Filed under the same run id, with other answers.
    rmtree(tmp_path / "filed" / "gradmem-1")
    write_run(tmp_path / "filed" / "gradmem-1", answers(0.8, 100, 7), seed=1)
    [row] = compared_rows(tmp_path / "runs", tmp_path / "filed").values()
    assert (row["seeds"], row["exact_match"]) == ("0 1", 0.7)
    text = " ".join(command("compare", tmp_path / "runs", tmp_path / "filed").output.split())
    assert "Found more than once, with unlike records, of which the last counts: gradmem-1." in text
