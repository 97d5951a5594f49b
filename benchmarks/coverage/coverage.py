"""Which networks of torchvision and timm can be pruned structurally, by featherweight and by Torch-Pruning?

    python benchmarks/coverage/coverage.py --ours --theirs                 measures what is not measured yet: hours
    python benchmarks/coverage/coverage.py --ours --quick --models nest_tiny,resnet18
    python benchmarks/coverage/coverage.py --list --set timm
    python benchmarks/coverage/report.py                                   results.json and README.md

Every network is examined in a process of its own, on one thread, and may use so many seconds of the processor, not of the
clock: --ours 300 for everything, --theirs 90 for graph and pruning, the checks aside. One JSON file for each network and side;
what has one is not measured again, except with --redo.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import logging
import multiprocessing
import os
import platform
import resource
import signal
import subprocess
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from checks import check_backward, check_finite, check_step, run
from record import Record, Stopped, verdict_of
from torch import nn
from zoo import Entry, build, entries, example, import_torchvision

RESULTS = Path(__file__).with_name("results")
SECONDS = {"ours": 300, "theirs": 90}
CLOCK_FACTOR = 20
"""The clock may show so many times the processor's seconds: other work on the machine is not the library's fault."""
MOST_BYTES = 10 << 30
CONTEXT = multiprocessing.get_context("fork")


def examine(entry: Entry, side: str, path: Path, options: argparse.Namespace, facts: dict[str, Any]) -> None:
    """Runs in the child: builds the network, and asks one side's questions."""
    resource.setrlimit(resource.RLIMIT_DATA, (MOST_BYTES, MOST_BYTES))
    warnings.simplefilter("ignore")
    notes: list[str] = []
    _listen(notes)
    record = Record(path, **facts)
    try:
        with record.stage("dense", needed=True):
            dense = build(entry.source, entry.name, fused=side == "ours")
            check_finite(run(dense, example(entry)))
            if side == "ours" and not options.quick:
                record.facts["dense_without_gradient"] = len(check_backward(dense, entry))
                check_step(dense, entry)
        limit_cpu(options.seconds or SECONDS[side])
        examiner(side, options)(entry, dense, record)
    except Stopped:
        pass
    record.facts["stage"] = "end"
    record.facts["notes"] = notes
    record.facts["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    record.write()


def examiner(side: str, options: argparse.Namespace) -> Callable[[Entry, nn.Module, Record], None]:
    """What asks one side's questions. Imported here only, so that either side can be measured without the other's library."""
    if side == "ours":
        import ours

        ours.warm_up()
        return partial(ours.examine, quick=options.quick)
    import theirs

    return partial(theirs.examine, unlimited=partial(limit_cpu, None))


def limit_cpu(seconds: float | None) -> None:
    """The process is killed (SIGXCPU) when it has used so many more seconds of the processor."""
    used = time.process_time()
    soft = resource.RLIM_INFINITY if seconds is None else int(used + seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.RLIM_INFINITY))


def measure(entry: Entry, side: str, options: argparse.Namespace, facts: dict[str, Any]) -> dict[str, Any]:
    """One network and side, in a process of its own; what the record says afterwards, also if the process was killed."""
    path = path_of(entry, side, options)
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = {**facts, **vars(entry), "side": side, "limit_cpu_s": options.seconds or SECONDS[side]}
    Record(path, **facts).write()
    process = CONTEXT.Process(target=examine, args=(entry, side, path, options, facts))
    process.start()
    process.join(CLOCK_FACTOR * (options.seconds or SECONDS[side]) + 600)
    stuck = process.exitcode is None
    if stuck:
        process.kill()
        process.join()
    found = json.loads(path.read_text(encoding="utf-8"))
    if found["stage"] != "end":
        out_of_time = stuck or process.exitcode == -signal.SIGXCPU
        found["killed"] = "time" if out_of_time else f"exit status {process.exitcode}"
        found["verdict"] = verdict_of(found)
        path.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return found


def path_of(entry: Entry, side: str, options: argparse.Namespace) -> Path:
    """The file of one network and side. Quick examinations ask less, so they stay apart."""
    folder = f"{side}-quick" if options.quick and side == "ours" else side
    return options.results / folder / f"{entry.source}-{entry.name}.json"


def describe(found: dict[str, Any]) -> str:
    """A line about a record, and what failed below it."""
    seconds = {name: f"{value['cpu']:.1f} s" for name, value in found["seconds"].items()}
    times = "  ".join(f"{name} {seconds[name]}" for name in ("plan", "apply", "graph", "prune") if name in seconds)
    gone = f"{100 * found['gone']:.1f} % gone" if "gone" in found else ""
    where = f"in {found['stage']}" if "killed" in found else ""
    lines = [f"{found['verdict']:<13} {found['side']:<6} {found['name']:<34} {gone:<11} {times} {where}".rstrip()]
    lines += [f"    {name}: {' '.join(error.split())[:200]}" for name, error in found["failed"].items()]
    if not found.get("independent_difference", 0) < 1e-3:
        lines.append(f"    masked without the library: differs by {found['independent_difference']:.2g}")
    if "independent_error" in found:
        lines.append(f"    masked without the library: {found['independent_error'][:200]}")
    lines += [f"    note: {note}" for note in found.get("notes", [])]
    if found.get("locked"):
        lines.append(f"    locked {found['locked']}: " + " | ".join(reason[:120] for reason in found["locked_first"]))
    return "\n".join(lines)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ours", action="store_true", help="examine featherweight")
    parser.add_argument("--theirs", action="store_true", help="examine Torch-Pruning")
    parser.add_argument("--both", action="store_true", help="--ours --theirs, one network after the other")
    parser.add_argument("--quick", action="store_true", help="ours without file and ONNX; always measured again")
    parser.add_argument("--list", action="store_true", help="print the networks, and measure nothing")
    parser.add_argument("--models", type=lambda text: text.split(","), help="names, with commas between")
    parser.add_argument("--set", choices=["all", "timm", "torchvision"], default="all")
    parser.add_argument("--jobs", type=int, default=1, help="processes at once")
    parser.add_argument("--redo", choices=["none", "failed", "all"], default="none", help="measure these again")
    parser.add_argument("--seconds", type=float, help="of the processor, instead of the usual limit")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the records")
    return parser.parse_args()


def main() -> None:
    options = parse()
    chosen = [e for e in entries(options.set) if options.models is None or e.name in options.models]
    unknown = {*(options.models or ())} - {e.name for e in chosen}
    if unknown:
        raise SystemExit(f"no such networks: {', '.join(sorted(unknown))}; --list prints their names")
    if options.list:
        for e in chosen:
            print(f"{e.source:<12} {e.family:<28} {e.name:<36} {e.parameters / 1e6:8.2f} M  {e.size:>4} px")
        return
    sides = [side for side in SECONDS if getattr(options, side) or options.both]
    if not sides:
        raise SystemExit("say whom to measure: --ours, --theirs or --both; or --list the networks")
    torch.set_num_threads(1)
    import_torchvision()
    import timm  # noqa: F401  (once, before the processes part)

    for side in sides:
        examiner(side, options)  # imports everything now, once
    facts = {
        "commit": _commit(),
        "date": datetime.date.today().isoformat(),
        "versions": _versions(),
        "cores": os.cpu_count(),
        "threads": 1,
    }
    chosen.sort(key=lambda e: e.parameters)
    jobs = [(e, side) for e in chosen for side in sides if _is_due(path_of(e, side, options), options)]
    with ThreadPoolExecutor(options.jobs) as pool:  # a thread only waits for its process
        for found in pool.map(lambda job: measure(*job, options, facts), jobs):
            print(describe(found), flush=True)


def _is_due(path: Path, options: argparse.Namespace) -> bool:
    if path.parent.name.endswith("-quick") or options.redo == "all" or not path.exists():
        return True
    verdict = json.loads(path.read_text(encoding="utf-8"))["verdict"]
    return verdict == "unfinished" or (options.redo == "failed" and verdict != "ok")


def _versions() -> dict[str, str]:
    packages = ("torch", "torchvision", "timm", "torch-pruning", "onnx", "onnxruntime")
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in packages}}


def _commit() -> str:
    git = ["git", "-C", str(Path(__file__).parent)]
    commit = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=False).stdout.strip()
    return f"{commit}+" if changed else commit


def _listen(notes: list[str]) -> None:
    """Collects what featherweight logs, and silences everyone else."""

    class Collector(logging.Handler):
        def emit(self, line: logging.LogRecord) -> None:
            notes.append(line.getMessage()[:300])

    logging.getLogger().setLevel(logging.ERROR)
    own = logging.getLogger("featherweight")
    own.addHandler(Collector())
    own.setLevel(logging.WARNING)
    own.propagate = False


if __name__ == "__main__":
    main()
