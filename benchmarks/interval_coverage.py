"""How often the intervals hold the truth, and how often the tests see a difference that is not there.

    python benchmarks/interval_coverage.py

Answers are simulated, right or wrong, several of a context, from models whose true score is known; the library's own
`estimate` and `compared` are asked for an interval and a p value each time. Beside them stand the ways that are
common: queries taken for independent, the percentile bootstrap over contexts, and seeds taken for given. Wanted are
95 % of the intervals and 5 % of the tests; with 2,000 repetitions, chance alone moves a figure by 1 point (two
standard errors).
"""

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy.special import ndtri

from gradmem_bench.results import code_version
from gradmem_bench.statistics import Difference, Estimate, compared, estimate, mcnemar, wilson

COVERAGE, FALSE_POSITIVES = (0.93, 0.97), (0.04, 0.06)
RESAMPLES = 500


@dataclass(frozen=True)
class Design:
    """What is simulated."""

    contexts: int
    queries: tuple[int, int]
    """The fewest and the most of a context, all numbers between being as likely."""
    score: float
    """The true share of right answers."""
    within: float = 0.0
    """Of one method: the correlation of two answers of a context."""
    difference: float = 0.0
    """How far the second method's true score is below."""
    seeds: int = 1
    seed_spread: float = 0.0
    """Standard deviation of what a seed adds to a method, where a single answer's own noise has 1."""
    other_seed_spread: float | None = None
    """That of the second method, where it is not the first's."""

    def clusters(self, generator: Generator) -> np.ndarray:
        """(n,), the context of each query."""
        low, high = self.queries
        return np.repeat(np.arange(self.contexts), generator.integers(low, high + 1, size=self.contexts))


ONE_METHOD = [Design(k, (1, 1), p) for k in (20, 100, 1000) for p in (0.5, 0.8, 0.95)] + [
    Design(k, (1, 9), p, within) for k in (5, 10, 20, 50, 100, 400) for p in (0.5, 0.8, 0.95) for within in (0.05, 0.3)
]
TWO_METHODS = [
    Design(k, queries, 0.7, difference=difference)
    for difference in (0.0, 0.03)
    for k, queries in [
        (20, (1, 9)),
        (50, (1, 9)),
        (100, (1, 9)),
        (400, (8, 8)),
        (2000, (1, 9)),
        (200, (1, 1)),
        (1000, (1, 1)),
        (5000, (1, 1)),
    ]
]
SKEWED = [Design(k, (1, 9), 0.0) for k in (20, 50, 100, 400)]
SEEDS = [Design(200, (4, 4), 0.7, seeds=s, seed_spread=spread) for s in (2, 3, 5) for spread in (0.0, 0.1, 0.3)]
SEEDS += [Design(200, (4, 4), p, seeds=s, seed_spread=1.0) for p in (0.7, 0.95) for s in (3, 5)]
SEEDS += [
    Design(200, (4, 4), 0.7, seeds=s, seed_spread=spread, other_seed_spread=other)
    for s in (2, 3, 5)
    for spread, other in ((0.1, 0.0), (0.3, 0.0), (1.0, 0.1))
]
STUCK, LEARNED, STUCK_SHARE = 0.26, 0.95, 1 / 3
"""Of trainings that stay on a plateau or leave it: the score of either, and how many stay."""
PLATEAUS = [Design(200, (4, 4), STUCK_SHARE * STUCK + (1 - STUCK_SHARE) * LEARNED, seeds=s) for s in (3, 5, 10)]


def one_method(design: Design, generator: Generator) -> dict[str, float]:
    """One simulated evaluation: the probability of being right is drawn for each context from a beta distribution."""
    clusters = design.clusters(generator)
    if design.within:
        strength = 1 / design.within - 1
        chances = generator.beta(design.score * strength, (1 - design.score) * strength, size=design.contexts)[clusters]
    else:
        chances = np.full(len(clusters), design.score)
    right = (generator.random(len(clusters)) < chances).astype(float)
    found = estimate(right, clusters.tolist(), "proportion")
    low, high = wilson(int(right.sum()), len(right))
    figures = {
        "coverage": holds(found, design.score),
        "width": (found.high or 0.0) - (found.low or 0.0),
        "no_interval": found.low is None,
        "coverage_independent": low <= design.score <= high,
    }
    if design.queries != (1, 1):
        low, high = bootstrap(right, clusters, generator)
        figures["coverage_bootstrap"] = low <= design.score <= high
    return figures


def bootstrap(scores: np.ndarray, clusters: np.ndarray, generator: Generator) -> tuple[float, float]:
    """The percentile interval of the mean over whole contexts drawn with replacement."""
    totals, sizes = np.bincount(clusters, weights=scores), np.bincount(clusters)
    k = len(sizes)
    drawn = generator.integers(0, k, size=(RESAMPLES, k))
    low, high = np.quantile(totals[drawn].sum(axis=1) / sizes[drawn].sum(axis=1), [0.025, 0.975])
    return float(low), float(high)


def answers(design: Design, generator: Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Both methods' answers (S, n) and the contexts (n,): a threshold on a sum of normal numbers.

    The context and the query make both methods' answers alike; the context also suits one method more than the other.
    """
    clusters = design.clusters(generator)
    k, n = design.contexts, len(clusters)
    shared = 0.5 * generator.normal(size=k)[clusters] + generator.normal(size=n)
    other = design.seed_spread if design.other_seed_spread is None else design.other_seed_spread
    both = []
    for score, spread in ((design.score, design.seed_spread), (design.score - design.difference, other)):
        noise = shared + 0.5 * generator.normal(size=k)[clusters] + generator.normal(size=(design.seeds, n))
        noise += spread * generator.normal(size=(design.seeds, 1))
        deviation = np.sqrt(0.5**2 + 1 + 0.5**2 + spread**2 + 1)
        both.append((noise < ndtri(score) * deviation).astype(float))
    return both[0], both[1], clusters


def skewed(design: Design, generator: Generator) -> dict[str, float]:
    """A mean that knows no upper bound, as bits do: the values are log-normal, and the true mean is known."""
    clusters = design.clusters(generator)
    normal = 0.7 * generator.normal(size=design.contexts)[clusters] + generator.normal(size=len(clusters)) - 1
    values, truth = np.exp(normal), np.exp(-1 + (0.7**2 + 1) / 2)
    found = estimate(values, clusters.tolist(), "amount")
    low, high = bootstrap(values, clusters, generator)
    return {"coverage": holds(found, truth), "coverage_bootstrap": low <= truth <= high}


def two_methods(design: Design, generator: Generator) -> dict[str, float]:
    first, second, clusters = answers(design, generator)
    found = compared(first, second, clusters.tolist(), "proportion")
    discordant = int((first > second).sum()), int((second > first).sum())
    return {
        "coverage": holds(found, design.difference),
        "significant": found.p <= 0.05,
        "significant_independent": mcnemar(*discordant) <= 0.05,
    }


def several_seeds(design: Design, generator: Generator) -> dict[str, float]:
    first, second, clusters = answers(design, generator)
    names = clusters.tolist()
    one, both = estimate(first, names, "proportion"), compared(first, second, names, "proportion")
    given = estimate(first.mean(axis=0) - second.mean(axis=0), names, "mean")
    return {
        "coverage": holds(one, design.score),
        "coverage_difference": holds(both, design.difference),
        "significant": both.p is not None and both.p <= 0.05,
        # The same scores with the seeds taken for given: an interval that leaves 0 out.
        "significant_independent": not given.low <= 0 <= given.high,
    }


def plateaus(design: Design, generator: Generator) -> dict[str, float]:
    """Both methods' seeds stay on a plateau or leave it, as chance has it."""
    clusters = design.clusters(generator)
    names, n = clusters.tolist(), len(clusters)
    both = []
    for _ in range(2):
        stuck = generator.random((design.seeds, 1)) < STUCK_SHARE
        both.append((generator.random((design.seeds, n)) < np.where(stuck, STUCK, LEARNED)).astype(float))
    one, difference = estimate(both[0], names, "proportion"), compared(*both, names, "proportion")
    return {
        "coverage": holds(one, design.score),
        "coverage_difference": holds(difference, 0.0),
        "significant": difference.p is not None and difference.p <= 0.05,
    }


def holds(found: Estimate | Difference, truth: float) -> bool:
    return found.low is not None and found.low <= truth <= found.high


PARTS: dict[str, tuple[list[Design], Callable[[Design, Generator], dict[str, float]]]] = {
    "one method": (ONE_METHOD, one_method),
    "two methods": (TWO_METHODS, two_methods),
    "several seeds": (SEEDS, several_seeds),
    "a skewed mean": (SKEWED, skewed),
    "seeds on plateaus": (PLATEAUS, plateaus),
}
HEADERS = {
    "coverage": "holds the truth",
    "coverage_difference": "difference holds it",
    "significant": "p ≤ 0.05",
    "coverage_independent": "queries independent",
    "coverage_bootstrap": "bootstrap",
    "significant_independent": "naive p ≤ 0.05",
    "width": "width",
    "no_interval": "no interval",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("leaderboards/calibration"))
    arguments = parser.parse_args()
    console, parts, code, started = Console(), {}, code_version(), time.perf_counter()
    for name, (designs, simulate) in PARTS.items():
        rows = []
        for number, design in enumerate(track(designs, name, console=console, transient=True)):
            generator = np.random.default_rng([arguments.seed, list(PARTS).index(name), number])
            runs = [simulate(design, generator) for _ in range(arguments.repetitions)]
            means = {key: float(np.mean([run[key] for run in runs])) for key in runs[0]}
            rows.append(vars(design) | {key: round(mean, 4) for key, mean in means.items()})
        parts[name] = rows
        console.print(drawn(name, rows))
        console.print()
    record = {
        "command": ["python", *sys.argv],
        "code": code.model_dump(),
        "machine": {"python": platform.python_version(), "numpy": np.__version__},
        "repetitions": arguments.repetitions,
        "seconds": round(time.perf_counter() - started),
        "parts": parts,
    }
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / "interval_coverage.json"
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    console.print(f"{arguments.repetitions:,} repetitions in {record['seconds']} s; record: {path}")


def drawn(name: str, rows: list[dict[str, Any]]) -> Table:
    """The designs and their figures in per cent; what is not as it should be is red."""
    varied = [key for key in vars(ONE_METHOD[0]) if len({str(row[key]) for row in rows}) > 1]
    figures = [key for key in HEADERS if any(key in row for row in rows)]
    table = Table(title=name, title_justify="left", title_style="bold", box=None, padding=(0, 1))
    for key in [*varied, *figures]:
        table.add_column(HEADERS.get(key, key.replace("_", " ")), justify="right")
    for row in rows:
        low, high = row["queries"]
        shown = row | {"queries": f"{low}–{high}" if low < high else low}
        table.add_row(*(str(shown[key]) for key in varied), *(figure(key, row) for key in figures))
    return table


def figure(key: str, row: dict[str, Any]) -> str:
    if key not in row:
        return "–"
    if key == "width":
        return f"{row[key]:.3f}"
    bounds = COVERAGE if key.startswith("coverage") else FALSE_POSITIVES
    wanted = key != "no_interval" and not (key.startswith("significant") and row["difference"])
    text = f"{100 * row[key]:.1f} %"
    return f"[red]{text}[/]" if wanted and not bounds[0] <= row[key] <= bounds[1] else text


if __name__ == "__main__":
    main()
