"""Methods and tasks that are a user's own files."""

from commands import TINY, command

from gradmem_bench.results import find_records, read_record


def test_a_method_is_one_file_and_one_yaml(tmp_path):
    (tmp_path / "backwards.py").write_text(
        "from gradmem_bench.methods.truncated_text import TruncatedText\n\n\n"
        "class Backwards(TruncatedText):\n"
        "    def _kept(self, ids):\n        return super()._kept(ids[::-1])\n"
    )
    (tmp_path / "backwards.yaml").write_text(
        "name: backwards\nclass: backwards:Backwards\nparameters: {max_bytes: 5}\n"
    )
    included = ["--include-path", tmp_path]
    assert "backwards" in command("list", "methods", *included).output
    assert "max_tokens: null" in command("show", "backwards", *included).output
    done = command("run", "--method=backwards", *TINY, *included, "--output", tmp_path / "runs")
    assert (done.code, done.errors) == (0, "")
    [path] = (tmp_path / "runs").rglob("run.json")
    record = read_record(path)
    assert record.method.implementation == "backwards:Backwards"
    assert record.footprint.state_bytes.max == 5


def test_a_task_that_was_changed_is_another_run_and_shares_no_table(tmp_path, local_task, local_model):
    given = ["--method=no_memory", "--task", local_task, "--backbone", local_model, "--output", tmp_path / "runs"]
    text = local_task.read_text()
    edits = (text, f'doc_to_text: "Q {{{{query}}}}"\n{text}', text.replace("until: []", "until: ['!']"))
    outputs = []
    for declared in edits:
        local_task.write_text(declared)
        done = command("run", *given)
        assert (done.code, done.errors) == (0, "")
        outputs.append(done.output)
    assert command("run", *given).output.count("done before") == 1
    records = find_records([tmp_path / "runs"]).values()
    assert len({record.task.declaration_hash for record in records}) == len({record.run_id for record in records}) == 3
    # Where an answer ends is of no account to training.
    assert ["trained before" in output for output in outputs] == [False, False, True]
    refused = command("compare", tmp_path / "runs")
    assert refused.code == 2 and "they differ in declaration (" in " ".join(refused.errors.split())


def test_a_method_that_was_changed_is_another_run(tmp_path):
    source = tmp_path / "changing_method.py"
    text = "from gradmem_bench.methods.truncated_text import TruncatedText\n\n\nclass Mine(TruncatedText):\n    pass\n"
    (tmp_path / "mine.yaml").write_text("name: mine\nclass: changing_method:Mine\nparameters: {max_bytes: 5}\n")
    folders = []
    for body in (text, text, text + "    # changed\n"):
        source.write_text(body)
        done = command("run", "--method=mine", *TINY, "--include-path", tmp_path, "--output", tmp_path / "runs")
        assert done.code == 0
        folders.append({path.parent for path in (tmp_path / "runs").rglob("run.json")})
    assert [len(found) for found in folders] == [1, 1, 2]
    records = [read_record(folder / "run.json") for folder in sorted(folders[-1])]
    assert len({record.method.source_hash for record in records}) == 2
    assert {record.method.package for record in records} == {""}
