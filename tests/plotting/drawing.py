"""What is read off pictures, and runs that differ in what a person decided."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from boards import write_run
from records import TRAINING

from gradmem_bench.checkpoints import METHOD_FILE, save
from gradmem_bench.config import fingerprint
from gradmem_bench.plotting.pictures import draw
from gradmem_bench.results import RunRecord, find_records

WRITING = Path(__file__).parents[2] / "leaderboards" / "writing"


def drawn(kind: str, folder: Path):
    """The axes of the only picture of a kind."""
    pictures = dict(draw(kind, find_records([folder])))
    assert len(pictures) == 1
    return next(iter(pictures.values())).axes[0]


def containers(axes) -> dict:
    """label -> (points, (low, high) of each error bar)."""
    found = {}
    for one in axes.containers:
        points = [tuple(map(float, point)) for point in zip(*one[0].get_data(), strict=True)]
        bars = [(float(bar[0][1]), float(bar[1][1])) for bar in one[2][0].get_segments()]
        found[one.get_label()] = (points, bars)
    return found


def caption_of(axes) -> str:
    return axes.get_figure().get_supxlabel().replace("\n", " ")


def write_gradmem(
    folder: Path,
    right: int,
    seed: int = 0,
    training: dict[str, Any] | None = None,
    name: str = "gradmem",
    **changes: Any,
) -> RunRecord:
    """A run of a method with the parameters of GradMem among `changes`, trained as `training` says."""
    parameters = {"memory_vectors": 8, "inner_steps": 1, "evaluation_inner_steps": None, "inner_learning_rate": 1.0}
    parameters |= {key: changes.pop(key) for key in parameters if key in changes}
    config = TRAINING.config | {"queries_per_context": None} | (training or {})
    trained = TRAINING.model_copy(update={"seed": seed, "config": config})
    texts = {"run_id": f"{name}-{folder.name}", "config_hash": fingerprint(folder.name)}
    return write_run(folder, name, right, parameters=parameters, training=trained, **(texts | changes))


def write_history(folder: Path, scores: list[float], stages: Sequence[int] | None = None) -> None:
    """The weights' file of a run, with what its validations found, each in one of `stages` or all in the first."""
    stages = stages or [0] * len(scores)
    history = [
        {"step": 10 * (at + 1), "stage": stage, "score": score}
        for at, (score, stage) in enumerate(zip(scores, stages, strict=True))
    ]
    save(folder / METHOD_FILE, {}, {"history": history})
