"""What a caption says of a table's controls: answers from states that know nothing of their context."""

from collections.abc import Iterable, Sequence

from gradmem_bench.reporting.rows import Row


def control_lines(rows: Sequence[Row]) -> Iterable[str]:
    """What the columns of the controls are, and of whom the one without a step of WRITE is not known."""
    blank = {id(row): row.mean(lambda one: one.swap_test.blank_score) is not None for row in rows}
    records = [record for row in rows for record in row.records]
    queries = [one.swap_test.queries for one in records if one.swap_test.swapped_score is not None]
    if queries:
        several = f"{min(queries):,} to {max(queries):,}" if min(queries) < max(queries) else f"{queries[0]:,}"
        controls = {"Foreign": "from another context’s state", "random": "from one of random numbers"}
        if any(blank.values()):
            controls["blank"] = "from the one that WRITE begins with (K = 0)"
        *others, last = controls.values()
        yield (
            f"{', '.join(controls)}: the share of right answers {', '.join(others)}, and {last}, over the swap test’s "
            f"{several} queries."
        )
    asked: dict[tuple[str, str], set[int | None]] = {}
    for row in rows:
        method = row.record.method
        parameters = method.parameters
        if parameters.get("inner_steps") and "evaluation_inner_steps" in parameters:
            trained = repr({key: value for key, value in parameters.items() if key != "evaluation_inner_steps"})
            steps = asked.setdefault((method.name, trained), set())
            steps.add(0 if blank[id(row)] else parameters["evaluation_inner_steps"])
    without = [name for (name, _), steps in asked.items() if 0 not in steps]
    for name in dict.fromkeys(without):
        settings = sum(other == name for other, _ in asked)
        some = f" in {without.count(name)} of its {settings} settings" if settings > 1 else ""
        yield (
            f"{name} without a step of WRITE (K = 0) was not run here{some}: --set {name}.evaluation_inner_steps=0 "
            "shows what the steps do, and trains nothing anew where the weights are kept."
        )
