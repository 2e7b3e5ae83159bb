"""Variants of one computation, each in a process of its own, that take turns: paired time ratios and peak memory.

What else the machine does then hits all variants alike, and a variant's peak memory is its own.
"""

import argparse
import ctypes
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from gradmem_bench.captured import SIGHTS
from gradmem_bench.commands.options import Dtype
from gradmem_bench.precision import round_products
from gradmem_bench.results import code_version, processor

Row = dict[str, Any]
DTYPES = [one.value for one in Dtype]
WEIGHED = {"MALLOC_MMAP_THRESHOLD_": str(1 << 16)}
"""Where memory is measured, every tensor has pages of its own, which go back with it: else the holes between tensors in
the heap, which grow with the steps, would count as memory that a step takes. Times are those of a run as it is."""
STYLES = {"naive": ("0.0", "o", "-"), "unrolled": ("0.55", "s", ":"), "recompute": ("0.35", "^", "--")}
STYLES |= {"plain": STYLES["recompute"], "compiled": ("tab:blue", "D", "-.")}
"""Colour, marker and line of a variant, that differ in grey too."""


def start(
    parser: argparse.ArgumentParser,
    variants: Sequence[str],
    work: Callable[[argparse.Namespace], None],
    drive: Callable[[argparse.Namespace], None],
) -> None:
    """Reads the command line, with what every comparison can be told; calls `drive`, or in a variant's process `work`.

    Args:
        parser: with the comparison's own flags; what it reads is passed on to the variants' processes.
    """
    parser.add_argument("--repeats", type=positive, default=5, help="times that each variant is timed, in turns")
    parser.add_argument("--threads", type=positive, default=torch.get_num_threads(), help="of each variant's process")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to run")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="precision, as of gradmem-bench run")
    parser.add_argument("--naive-dtype", choices=DTYPES, help="precision of naive, where it is another")
    parser.add_argument("--output", type=Path, default=Path("leaderboards/performance"), help="of record and picture")
    parser.formatter_class = argparse.ArgumentDefaultsHelpFormatter
    parser.add_argument("--variant", choices=variants, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not arguments.variant:
        drive(arguments)
        return
    if arguments.variant == "naive" and arguments.naive_dtype:
        arguments.dtype = arguments.naive_dtype
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    round_products(arguments.dtype)
    work(arguments)


def positive(text: str) -> int:
    """A whole number of at least 1, for argparse."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is below 1")
    return number


# ------------------------------------------------------------------------------------- one variant


def serve(
    step: Callable[[], Any],
    device: str,
    figures: Callable[[], Row] = dict,
    clock: Callable[[Callable[[], Any]], float] | None = None,
) -> None:
    """Runs `step` for every line on standard input; answers with its seconds and its peak memory.

    The first answer comes after some runs to warm up (to compile, to check, to record) and has `figures` beside it. The
    peak is over the later ones, above what is held between steps on a CPU; on a GPU it is what the process keeps of the
    device while steps are run, its weights apart.

    Args:
        clock: the seconds that `step` took, where it is more than what is to be timed.
    """
    on_gpu = device == "cuda"
    held = torch.cuda.memory_allocated() if on_gpu else None
    timed = clock or (_seconds_on_gpu if on_gpu else _seconds)
    for number, _ in enumerate(sys.stdin):
        answer: Row = {"seconds": None, "bytes": None}
        # What does not fit is let go behind the handler, which itself holds the frames that it came from.
        with suppress(torch.OutOfMemoryError):
            for _ in range(_WARM_UPS if on_gpu and number == 0 and clock is None else 0):
                step()
            seconds = timed(step)
            told = figures() if number == 0 else {}
            answer = {"seconds": seconds, "bytes": None if number == 0 else _peak(device) - held, **told}
        print(json.dumps(answer), flush=True)
        if on_gpu:
            _reset_peak(device)
        elif number == 0:
            held = _reset_peak(device)


_WARM_UPS = SIGHTS + 1
"""More than it takes until a shape is recorded as a CUDA graph."""
_TIMED, _TIMED_SECONDS = 20, 0.5
"""On a GPU so many steps are timed together, or as many as half a second holds: one alone is too short a time."""


def _seconds(step: Callable[[], Any]) -> float:
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


def _seconds_on_gpu(step: Callable[[], Any]) -> float:
    """The mean of several steps, behind one that takes its memory back from the device."""
    torch.cuda.synchronize()

    def several(count: int) -> float:
        started = time.perf_counter()
        for _ in range(count):
            step()
        torch.cuda.synchronize()
        return (time.perf_counter() - started) / count

    several(1)
    once = several(1)
    fitting = min(_TIMED, int(_TIMED_SECONDS / once))
    return several(fitting) if fitting > 1 else once


def _peak(device: str) -> int:
    return torch.cuda.max_memory_reserved() if device == "cuda" else _resident("VmHWM")


def _reset_peak(device: str) -> int:
    """Bytes that are held now; the peak is counted anew from here. A GPU's memory is left to the other variants."""
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_reserved()
    # What the C library keeps of freed memory, compilation's too, would count as held.
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return _resident("VmRSS")


def _resident(key: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


# ------------------------------------------------------------------------------------- side by side


def take_turns(
    script: str, arguments: argparse.Namespace, variants: Sequence[str], **instead: Any
) -> dict[str, list[Row]]:
    """Each variant's answers: one to warm up, `--repeats` more in turns, and last its memory, on a CPU of a process of
    its own.

    Args:
        script: whose `work` is run.
        arguments: what its processes are told.
        instead: what they are told in place of some of it.
    """
    flags = _flags(vars(arguments) | instead)
    command = [sys.executable, script, *flags]
    workers = {variant: _worker([*command, "--variant", variant]) for variant in variants}
    answers: dict[str, list[Row]] = {variant: [] for variant in variants}
    for _ in range(1 + arguments.repeats):
        for variant, worker in workers.items():
            answers[variant].append(_answer(worker))
    for worker in workers.values():
        _end(worker)
    if arguments.device == "cuda":
        return {variant: [*found, found[-1]] for variant, found in answers.items()}
    # One after another: there is room for each.
    for variant in variants:
        worker = _worker([*command, "--variant", variant], **WEIGHED)
        _answer(worker)
        answers[variant].append(_answer(worker))
        _end(worker)
    return answers


def _worker(command: list[str], **settings: str) -> subprocess.Popen[str]:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    # Below level 6 the profiler tells of itself.
    return subprocess.Popen(command, **pipes, text=True, env=os.environ | {"KINETO_LOG_LEVEL": "6"} | settings)


def _answer(worker: subprocess.Popen[str]) -> Row:
    worker.stdin.write("step\n")
    worker.stdin.flush()
    line = worker.stdout.readline()
    if not line:
        raise SystemExit(f"It ended early: {' '.join(worker.args)}")
    return json.loads(line)


def _end(worker: subprocess.Popen[str]) -> None:
    worker.stdin.close()
    worker.wait()


def _flags(told: dict[str, Any]) -> list[str]:
    flags = []
    for name, value in told.items():
        if name not in ("repeats", "output", "variant") and value is not None:
            flags += [f"--{name.replace('_', '-')}", *map(str, value if isinstance(value, list | tuple) else [value])]
    return flags


def row(found: Sequence[Row], reference: Sequence[Row] | None, **what: Any) -> Row:
    """Medians of a variant's answers, and the median and range of its paired ratios to the reference's."""
    _, *timed, weighed = found
    fits = all(one["seconds"] is not None for one in found)
    figures = {
        **what,
        "seconds": statistics.median(one["seconds"] for one in timed) if fits else None,
        "bytes": weighed["bytes"],
        "time_ratio": None,
        "memory_ratio": None,
    }
    if fits and reference is not None and all(one["seconds"] is not None for one in reference):
        ratios = [one["seconds"] / other["seconds"] for one, other in zip(timed, reference[1:-1], strict=True)]
        figures |= {
            "time_ratio": statistics.median(ratios),
            "time_ratio_low": min(ratios),
            "time_ratio_high": max(ratios),
            "memory_ratio": figures["bytes"] / reference[-1]["bytes"],
        }
    return figures


def cells(figures: Row) -> list[str]:
    """A row's figures for people: seconds, time ratio with its range, peak memory and its ratio."""
    if figures["seconds"] is None:
        return ["does not fit", "-", "-", "-"]
    time_ratio, memory_ratio = figures["time_ratio"], figures["memory_ratio"]
    spread = (
        f"{time_ratio:.2f} [{figures['time_ratio_low']:.2f}, {figures['time_ratio_high']:.2f}]" if time_ratio else "-"
    )
    return [
        f"{figures['seconds']:.3g}",
        spread,
        f"{figures['bytes'] / 2**30:.2f} GiB",
        f"{memory_ratio:.2f}" if memory_ratio else "-",
    ]


def machine(device: str, threads: int) -> Row:
    """What the figures were measured on."""
    name = torch.cuda.get_device_name() if device == "cuda" else processor()
    return {
        "device": name,
        "cores": os.cpu_count(),
        "threads": threads,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def publish(name: str, arguments: argparse.Namespace, rows: list[Row], figure: Figure | None, **what: Any) -> Path:
    """Writes the record, and its picture beside it."""
    # Where it is written is no part of what was measured.
    at = sys.argv.index("--output") if "--output" in sys.argv else len(sys.argv)
    record = {
        "command": ["python", *sys.argv[:at], *sys.argv[at + 2 :]],
        "code": code_version().model_dump(),
        "machine": machine(arguments.device, arguments.threads),
        "repeats": arguments.repeats,
        "dtype": arguments.dtype,
        "naive_dtype": arguments.naive_dtype or arguments.dtype,
        **what,
        "rows": rows,
    }
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / f"{name}-{arguments.device}{_suffix(arguments)}.json"
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    if figure is not None:
        figure.savefig(path.with_suffix(".png"), dpi=150)
        figure.savefig(path.with_suffix(".svg"))
    return path


def _suffix(arguments: argparse.Namespace) -> str:
    """Of a record's name: precisions other than float32 for all."""
    told = [arguments.dtype] if arguments.dtype != "float32" else []
    return "".join(f"-{one}" for one in (*told, *([f"naive-{arguments.naive_dtype}"] if arguments.naive_dtype else [])))


def drawn(rows: list[Row], across: str, label: str, panels: str | None) -> Figure:
    """Seconds and peak memory against `across`, one column of panels for each value of `panels`."""
    columns = sorted({one[panels] for one in rows}) if panels else [None]
    figure = Figure(figsize=(1.2 + 3.3 * len(columns), 5.6), layout="constrained")
    axes = figure.subplots(2, len(columns), squeeze=False, sharex=True)
    for column, value in enumerate(columns):
        here = [one for one in rows if one["seconds"] is not None and (panels is None or one[panels] == value)]
        for variant in dict.fromkeys(one["variant"] for one in here):
            colour, marker, line = STYLES[variant]
            points = sorted(
                (one[across], one["seconds"], one["bytes"] / 2**30) for one in here if one["variant"] == variant
            )
            where, seconds, memory = zip(*points, strict=True)
            for axis, values in zip(axes[:, column], (seconds, memory), strict=True):
                axis.plot(where, values, color=colour, marker=marker, linestyle=line, label=variant)
        for axis, unit in zip(axes[:, column], ("seconds a step", "peak memory, GiB"), strict=True):
            axis.set(xscale="log", yscale="log", ylabel=unit if column == 0 else None)
            axis.set_xticks(sorted({one[across] for one in here}))
            axis.xaxis.set_major_formatter("{x:g}")
            axis.xaxis.set_minor_locator(NullLocator())
            axis.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
            axis.yaxis.set_major_formatter("{x:g}")
            axis.yaxis.set_minor_formatter("{x:g}")
            axis.grid(alpha=0.3)
        axes[1, column].set_xlabel(label)
        if panels:
            axes[0, column].set_title(f"{panels} = {value}")
    axes[0, 0].legend(frameon=False)
    return figure
