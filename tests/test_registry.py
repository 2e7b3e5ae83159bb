import importlib
import sys
import warnings
from pathlib import Path
from textwrap import dedent

import pytest
from commands import command

from gradmem_bench.config import StrictModel
from gradmem_bench.errors import Notice, UserError
from gradmem_bench.registry import Entry, entries, load_object, located, method_recipe, recipe_folder, resolve

METHOD = "name: {name}\nclass: {module}:Method\ndescription: >\n  Keeps\n  everything.\n"


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(dedent(text), encoding="utf-8")
    return path


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A function that installs a distribution: its metadata, entry points and modules, in a folder on sys.path."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.setattr(sys, "path", [*sys.path, str(folder)])
    before = set(sys.modules)

    def install(name: str, version: str, entry_points: str = "", **modules: str) -> None:
        info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
        write(info / "METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        write(info / "entry_points.txt", entry_points)
        for module, source in modules.items():
            write(folder / f"{module}.py", source)
        importlib.invalidate_caches()

    yield install
    for module in set(sys.modules) - before:
        del sys.modules[module]


def named(found: list[Entry], name: str) -> list[Entry]:
    return [entry for entry in found if entry.name == name]


# ---------------------------------------------------------------------------------------- built in


@pytest.mark.parametrize("kind", ["method", "task"])
def test_every_built_in_file_is_listed_and_resolves(kind):
    files = [path for path in recipe_folder(kind).glob("*.yaml") if not path.name.startswith("_")]
    assert files
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        built_in = [entry for entry in entries(kind) if entry.origin == "built in"]
    assert sorted(entry.target for entry in built_in) == sorted(str(path) for path in files)
    for entry in built_in:
        assert resolve(kind, entry.name) == resolve(kind, f"gradmem-bench:{entry.name}") == entry
        assert resolve(kind, entry.target).name == entry.name


def test_every_built_in_method_names_a_class_with_its_parameters():
    for entry in entries("method"):
        recipe = method_recipe(entry)
        parameters = load_object(recipe.implementation, entry).Parameters
        assert issubclass(parameters, StrictModel)
        parameters.model_validate(recipe.parameters)


def test_the_members_of_every_built_in_group_are_tasks():
    for entry in entries("task"):
        assert all(resolve("task", member).name == member for member in entry.members)


# ----------------------------------------------------------------------------------- include paths


def test_an_include_path_adds_and_replaces_and_the_later_one_wins(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    write(first / "one.yaml", METHOD.format(name="one", module="a"))
    write(first / "methods" / "two.yaml", METHOD.format(name="two", module="a"))
    write(first / "methods" / "_base.yaml", "parameters: {memory_vectors: 7}\n")
    write(first / "some_task.yaml", "task: some_task\n")
    text = "include: ../../first/methods/_base.yaml\nname: two\nclass: b:Method\n"
    write(second / "methods" / "other_file.yaml", text)

    found = entries("method", [first, second])
    assert {entry.name for entry in found} - {entry.name for entry in entries("method")} == {"one", "two"}
    assert named(found, "one") == [
        Entry("method", "one", str(first / "one.yaml"), str(first), description="Keeps everything.")
    ]
    assert resolve("method", "two", [first, second]).origin == str(second)
    assert resolve("method", "two", [second, first]).origin == str(first)

    recipe = method_recipe(resolve("method", "two", [first, second]))
    assert (recipe.implementation, recipe.parameters) == ("b:Method", {"memory_vectors": 7})


def test_an_include_path_replaces_a_built_in(tmp_path):
    name = entries("method")[0].name
    write(tmp_path / "mine.yaml", METHOD.format(name=name, module="mine"))
    assert [entry.origin for entry in named(entries("method", [tmp_path]), name)] == [str(tmp_path)]


def test_tasks_and_groups_of_an_include_path(tmp_path):
    text = "task: easy\ndescription: Answer briefly.\nmetadata: {version: 1, description: An easy one.}\n"
    write(tmp_path / "easy.yaml", text)
    write(tmp_path / "tasks" / "both.yaml", "group: both\ntask: [easy, hard]\n")
    write(tmp_path / "method.yaml", METHOD.format(name="m", module="a"))
    # lm-eval puts the key `description` before every prompt: it does not describe the task to people.
    assert resolve("task", "easy", [tmp_path]).description == "An easy one."
    assert resolve("task", "both", [tmp_path]).members == ("easy", "hard")
    assert not named(entries("task", [tmp_path]), "m")


def test_tasks_that_share_a_file_are_described_each_by_its_name(tmp_path):
    write(tmp_path / "_shared", "metadata: {description: {one: The first of two., two: The second.}}\n")
    for name in ("one", "two", "three"):
        write(tmp_path / f"{name}.yaml", f"include: _shared\ntask: {name}\n")
    told = {name: resolve("task", name, [tmp_path]).description for name in ("one", "two", "three")}
    assert told == {"one": "The first of two.", "two": "The second.", "three": ""}
    built_in = [entry for entry in entries("task") if not entry.members]
    assert len({entry.description for entry in built_in}) == len(built_in) and all(one.description for one in built_in)


def test_a_path_is_a_name(tmp_path):
    path = write(tmp_path / "deep" / "mine.yaml", "task: mine\n")
    assert resolve("task", str(path)) == Entry("task", "mine", str(path), str(path.parent))
    with pytest.raises(UserError, match=f"There is no file {tmp_path / 'absent.yaml'}"):
        resolve("task", str(tmp_path / "absent.yaml"))
    with pytest.raises(UserError, match="has no key 'task'"):
        resolve("method", str(path))


@pytest.mark.parametrize(
    ("kind", "text", "reason"),
    [
        ("method", "name: broken\nname: again\n", "line 2: the key 'name' stands here a second time"),
        ("method", "name: broken\nclas: a:B\n", "has no key 'clas'. Did you mean 'class'?"),
        ("method", "name: broken\nclass: a.B\n", "'class' is 'a.B', but: expected module:Class"),
        ("task", "task: [a, b]\n", r"declares no task: the key 'task' is \['a', 'b'\]"),
        ("task", "dataset_path: json\n", "declares no task: the key 'task' is None"),
        ("task", "group: broken\ntask: [{task: a}]\n", "a group takes a list of task names"),
    ],
)
@pytest.mark.parametrize("folder", [".", "{kind}s"])
def test_a_broken_file_is_warned_of_once_and_the_rest_works(tmp_path, kind, text, reason, folder):
    path = write(tmp_path / folder.format(kind=kind) / "broken.yaml", text)
    write(tmp_path / "good_method.yaml", METHOD.format(name="good", module="a"))
    write(tmp_path / "good_task.yaml", "task: good\n")
    with pytest.warns(UserWarning, match=reason) as caught:
        assert len(named(entries(kind, [tmp_path]), "good")) == 1
    assert len(caught) == 1 and str(path) in str(caught[0].message)
    assert resolve(kind, "good", [tmp_path]).name == "good"
    with pytest.raises(UserError, match=reason):
        resolve(kind, "broken", [tmp_path])


def test_a_broken_file_does_not_let_the_built_in_of_its_name_through(tmp_path):
    name = entries("method")[0].name
    write(tmp_path / f"{name}.yaml", f"name: {name}\nclass: 3\n")
    with pytest.raises(UserError, match=f"{name}.yaml: 'class' is 3"):
        resolve("method", name, [tmp_path])


def test_two_files_of_one_folder_with_one_name(tmp_path):
    paths = [write(tmp_path / file, "task: same\n") for file in ("a.yaml", "b.yaml")]
    with pytest.raises(UserError, match="several owners, .*a.yaml and .*b.yaml; write '.*a.yaml' or '.*b.yaml'"):
        resolve("task", "same", [tmp_path])
    assert resolve("task", str(paths[1])).target == str(paths[1])


def test_an_include_path_that_is_no_folder(tmp_path):
    with pytest.raises(UserError, match="The include path .*absent is no folder"):
        entries("task", [tmp_path / "absent"])


def test_a_method_is_one_file_and_one_yaml_of_the_users_own(tmp_path, site):
    write(tmp_path / "methods" / "mine.yaml", METHOD.format(name="mine", module="module_of_mine"))
    write(tmp_path / "module_of_mine.py", "class Method:\n    answer = 42\n")
    entry = resolve("method", "mine", [tmp_path])
    assert load_object(method_recipe(entry).implementation, entry).answer == 42


# -------------------------------------------------------------------------------- unknown, plugins


def test_an_unknown_name_gets_the_nearest_one(tmp_path):
    write(tmp_path / "gradual.yaml", METHOD.format(name="very_particular_name", module="a"))
    with pytest.raises(UserError) as caught:
        resolve("method", "very_particular_nam", [tmp_path])
    assert str(caught.value) == (
        "There is no method 'very_particular_nam' (see `gradmem-bench list methods`). "
        "Did you mean 'very_particular_name'?"
    )
    with pytest.raises(UserError, match="Did you mean 'gradmem-bench:gradmem'?"):
        resolve("method", "gradmem_bench:gradmem")


def test_a_package_adds_a_method_and_a_task_without_being_imported(site):
    points = """
        [gradmem_bench.methods]
        plugged = plugin_of_test:Method
        [gradmem_bench.tasks]
        asked = plugin_of_test:Task
        """
    site("test-plugin", "1.2", points, plugin_of_test="class Method: pass\nclass Task: pass\n")
    entry = resolve("method", "plugged")
    assert entry == Entry(
        "method", "plugged", "plugin_of_test:Method", "distribution test-plugin 1.2", distribution="test-plugin"
    )
    assert entry in entries("method") and resolve("task", "asked").target == "plugin_of_test:Task"
    assert "plugin_of_test" not in sys.modules

    recipe = method_recipe(entry)
    assert (recipe.name, recipe.parameters, recipe.training) == ("plugged", {}, {})
    assert load_object(recipe.implementation, entry).__module__ == "plugin_of_test"


def test_two_packages_with_one_name(site, tmp_path):
    site("first-plugin", "1.0", "[gradmem_bench.methods]\nshared_name = first_module:Method\nown = first_module:Own\n")
    site("second-plugin", "2.0", "[gradmem_bench.methods]\nshared_name = second_module:Method\n")
    listed = named(entries("method"), "shared_name")
    assert [entry.distribution for entry in listed] == ["first-plugin", "second-plugin"]
    assert resolve("method", "own").target == "first_module:Own"
    with pytest.raises(UserError) as caught:
        resolve("method", "shared_name")
    assert str(caught.value) == (
        "The method 'shared_name' has several owners, distribution first-plugin 1.0 and "
        "distribution second-plugin 2.0; write 'first-plugin:shared_name' or 'second-plugin:shared_name'."
    )
    assert resolve("method", "second-plugin:shared_name").target == "second_module:Method"

    write(tmp_path / "mine.yaml", METHOD.format(name="shared_name", module="mine"))
    assert resolve("method", "shared_name", [tmp_path]).origin == str(tmp_path)


def test_a_package_does_not_silently_replace_a_built_in(site):
    name = entries("method")[0].name
    site("greedy-plugin", "1.0", f"[gradmem_bench.methods]\n{name} = greedy:Method\n")
    with pytest.raises(UserError, match=f"write 'gradmem-bench:{name}' or 'greedy-plugin:{name}'"):
        resolve("method", name)
    assert resolve("method", f"gradmem-bench:{name}").origin == "built in"


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("absent_module_of_test:Method", "importing absent_module_of_test raised ModuleNotFoundError"),
        ("raising_plugin:Method", "importing raising_plugin raised ZeroDivisionError: division by zero"),
        ("healthy_plugin:Methot", "healthy_plugin has no 'Methot'. Did you mean 'Method'?"),
    ],
)
def test_a_broken_package_breaks_only_its_own_name(site, target, reason):
    site("broken-plugin", "0.3", f"[gradmem_bench.methods]\nbroken = {target}\n", raising_plugin="1 / 0\n")
    site("healthy-plugin", "1.0", healthy_plugin="class Method: pass\n")
    entry = resolve("method", "broken")
    assert len(named(entries("method"), "broken")) == 1
    with pytest.raises(UserError, match=r"'broken' \(distribution broken-plugin 0.3\) cannot be loaded") as caught:
        load_object(method_recipe(entry).implementation, entry)
    assert reason in str(caught.value)


@pytest.mark.parametrize("damage", ["no object", "no metadata"])
def test_a_package_with_a_broken_entry_point_is_one_warning_and_the_rest_works(site, tmp_path, damage):
    site("healthy-plugin", "1.0", "[gradmem_bench.methods]\nhealthy = healthy_plugin:Method\n")
    target = "some_module" if damage == "no object" else "some_module:Method"
    site("odd-plugin", "1.0", f"[gradmem_bench.methods]\nodd = {target}\n")
    folder = tmp_path / "site" / "odd_plugin-1.0.dist-info"
    reason = "The method 'odd' of distribution odd-plugin 1.0 is 'some_module', but: expected module:object"
    if damage == "no metadata":
        # What an uninstallation that was broken off may leave.
        (folder / "METADATA").unlink()
        reason = f"The method 'odd' of {folder}: this installation has no metadata"
    with pytest.warns(Notice) as caught:
        assert len(named(entries("method"), "healthy")) == 1
    (warning,) = caught
    assert str(warning.message).startswith(f"Left out: {reason}")
    assert resolve("method", "healthy").distribution == "healthy-plugin"
    for asked in ("odd", "odd-plugin:odd"):
        with pytest.raises(UserError) as error:
            resolve("method", asked)
        assert str(error.value).startswith(reason)
    # Nobody asked it for a task.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert entries("task")


def test_the_command_line_says_what_was_left_out_in_one_line(site):
    site("odd-plugin", "1.0", "[gradmem_bench.methods]\nodd = some_module\n")
    site("healthy-plugin", "1.0", "[gradmem_bench.methods]\nhealthy = healthy_plugin:Method\n")
    done = command("list", "methods")
    assert done.code == 0
    (row,) = [line for line in done.output.splitlines() if line.split()[:1] == ["healthy"]]
    assert "healthy_plugin:Method" in row and "healthy-plugin 1.0" in row
    assert done.errors.startswith("warning: Left out: The method 'odd' of distribution odd-plugin 1.0 is 'some_module'")
    assert done.errors.count("\n") == 1


def test_of_two_installations_of_one_package_the_first_counts(site, tmp_path, monkeypatch):
    site("twice-there", "2.0", "[gradmem_bench.methods]\ntwice = new:Method\n")
    older = tmp_path / "older" / "Twice_There-1.0.dist-info"
    write(older / "METADATA", "Metadata-Version: 2.1\nName: Twice_There\nVersion: 1.0\n")
    write(older / "entry_points.txt", "[gradmem_bench.methods]\ntwice = old:Method\n")
    monkeypatch.setattr(sys, "path", [*sys.path, str(older.parent)])
    assert resolve("method", "twice").target == "new:Method"


def test_an_entry_point_may_name_a_yaml_of_its_package(site, tmp_path):
    write(tmp_path / "one.yaml", "name: one\nclass: filed_plugin:Method\nparameters: {memory_vectors: 3}\n")
    write(tmp_path / "asked.yaml", "task: asked\nmetadata: {description: A question.}\n")
    write(tmp_path / "both.yaml", "group: both\ntask: [asked]\n")
    source = f"""
        from pathlib import Path
        FOLDER = Path({str(tmp_path)!r})
        ONE, ASKED, BOTH = (FOLDER / f"{{name}}.yaml" for name in ("one", "asked", "both"))
        class Method: pass
        """
    points = """
        [gradmem_bench.methods]
        one = filed_plugin:ONE
        other = filed_plugin:ONE
        [gradmem_bench.tasks]
        asked = filed_plugin:ASKED
        both = filed_plugin:BOTH
        wrong = filed_plugin:Method
        """
    site("filed-plugin", "1.0", points, filed_plugin=source)
    one = located(resolve("method", "one"))
    assert (one.target, one.package) == (str(tmp_path / "one.yaml"), "filed-plugin 1.0")
    assert method_recipe(one).parameters == {"memory_vectors": 3}
    assert load_object(method_recipe(one).implementation, one).__module__ == "filed_plugin"
    asked = located(resolve("task", "asked"))
    assert (asked.description, asked.distribution) == ("A question.", "filed-plugin")
    assert located(asked) == asked
    assert located(resolve("task", "both")).members == ("asked",)
    with pytest.raises(UserError, match="'other' .* is declared in .*one.yaml by another name, 'one'"):
        located(resolve("method", "other"))
    with pytest.raises(UserError, match="'wrong' .* but the pathlib.Path of a task's YAML file was expected"):
        located(resolve("task", "wrong"))


def test_a_class_of_a_package_needs_no_yaml(site):
    site(
        "plain-plugin",
        "1.0",
        "[gradmem_bench.methods]\nplain = plain_plugin:Method\n",
        plain_plugin="class Method: pass",
    )
    entry = resolve("method", "plain")
    assert located(entry) == entry and entry.package == "plain-plugin 1.0"
