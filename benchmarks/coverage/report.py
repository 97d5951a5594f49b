"""Merges the records in results/ into results.json, and writes README.md from that file.

    python benchmarks/coverage/report.py

What results.json holds already stays, unless there is a newer record of the same network and side.
"""

from __future__ import annotations

import json
import re
import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from record import verdict_of
from zoo import Entry, entries

HERE = Path(__file__).parent
RESULTS, PAGE = HERE / "results.json", HERE / "README.md"
SIDES = {"ours": "featherweight", "theirs": "Torch-Pruning"}
QUICK = "ours-quick"
"""Ours, asked everything but the file and ONNX: of networks for which there is no full record."""
SETS = {"timm": "timm families", "torchvision": "torchvision classification"}
FACTS = (
    "verdict failed killed stage seconds gone difference independent_difference independent_error mask_changes equal_in "
    "returns locked locked_first notes without_gradient dense_without_gradient peak_bytes limit_cpu_s commit date"
).split()
TIMES = {"ours": ("plan", "apply", "prune"), "theirs": ("graph", "prune")}

Record = dict[str, Any]


def merge() -> dict[str, Any]:
    """results.json's content, with the records of the folder put in."""
    old = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    merged: dict[str, Any] = {side: old.get(side, {}) for side in (*SIDES, QUICK)}
    versions: dict[str, set[str]] = {name: set(values) for name, values in old.get("versions", {}).items()}
    for side in merged:
        for path in sorted((HERE / "results" / side).glob("*.json")):
            record = json.loads(_without_folders(path.read_text(encoding="utf-8")))
            if verdict_of(record) == "unfinished":
                continue
            merged[side][f"{record['source']}/{record['name']}"] = {name: record[name] for name in FACTS if name in record}
            for name, version in {**record["versions"], "cores": str(record["cores"])}.items():
                versions.setdefault(name, set()).add(version)
        merged[side] = dict(sorted(merged[side].items()))
    merged[QUICK] = {name: record for name, record in merged[QUICK].items() if name not in merged["ours"]}
    return {"versions": {name: sorted(values) for name, values in sorted(versions.items())}, "threads": 1, **merged}


def _without_folders(text: str) -> str:
    """Messages name files; where they lie on one machine is nobody's business."""
    return re.sub(r"/[^\s\"']*/site-packages/", "", text).replace(f"{HERE.parents[1]}/", "")


def page(results: dict[str, Any]) -> str:
    """The report in Markdown."""
    parts = [_INTRODUCTION, _counts(results), _independent(results["ours"]), "## Seconds\n", _seconds(results), _DEFINITIONS]
    for side, title in SIDES.items():
        parts += [f"## Where {title} stops\n", _failures(results[side])]
    quick = [name for name, record in results.get(QUICK, {}).items() if _is_ok(record)]
    if quick:
        parts += ["## Right so far, file and ONNX not asked\n", ", ".join(f"`{name}`" for name in quick) + ".\n"]
    versions = ", ".join(f"{name} {' and '.join(values)}" for name, values in results["versions"].items())
    parts += ["## Every network\n", _table(results), f"One thread; {versions}."]
    return "\n".join(parts) + "\n"


_INTRODUCTION = """# Coverage of structural pruning

Half of the neurons go from each of the 80 classification networks of torchvision and, for each of timm's 98 modules, from its
smallest variant. Which library does that, and is the result right? Weights are random and redrawn so that nothing hides; no
network is trained here, so this says nothing about accuracy. `coverage.py` measures, `report.py` wrote this page.
"""

_DEFINITIONS = """
## What "ok" means

Ours: `plan_neurons(model, example, sparsity=0.5)` with the default options, then `Plan.apply`. All of these hold:

- the applied network agrees with the masked one (`Plan.mask`) at another batch size, on inputs that planning never saw: the
  largest difference is below 1e-4 of the largest output in double precision (below 1e-3 in single precision, for networks above
  400 million parameters or with a data type written into them);
- at least 30 % of the parameters are gone, counted in the network that comes back;
- it runs at another batch size, backward, and through a step of SGD in train mode;
- a `.fw` file gives the same outputs back (1e-5), and ONNX Runtime the same at another batch size (1e-3).

Torch-Pruning: `MetaPruner`, `MagnitudeImportance(p=1)`, ratio 0.5 in every group, the classifier ignored, and all the help of
its examples and more (`theirs.py` lists it). The same questions, but no file and no ONNX. It has no mask of its own, so its
result is compared with the dense network in which all it cut is zero and in which norms count only what is kept (`masking.py`).
Ours is compared with that, too, beside its own mask.

Each network has a process of its own, one thread and at most 10 GiB of memory. Ours may use 300 seconds of the processor for
everything, theirs 90 for graph and pruning ("timeout" otherwise). Images are the smallest the dense network takes, from 96
pixels up, in batches of two. "mask changes" is how far the masked network is from the dense one, relative to the largest
output: were it near 0, agreement with the mask would mean nothing. Auxiliary classifiers, which only run in training, are left
out of `googlenet` and `inception_v3`.
"""


def _counts(results: dict[str, Any]) -> str:
    lines = ["| networks | whose | measured | ok | not ok |", "| :-- | :-- | --: | --: | :-- |"]
    for source, title in SETS.items():
        total = len(entries(source))
        for side, whose in {**SIDES, QUICK: "featherweight, file and ONNX not asked"}.items():
            verdicts = Counter(r["verdict"] for name, r in results.get(side, {}).items() if name.startswith(f"{source}/"))
            if side == QUICK and not verdicts:
                continue
            wrong = ", ".join(f"{number} {verdict}" for verdict, number in verdicts.most_common() if verdict != "ok")
            lines.append(f"| {title} | {whose} | {verdicts.total()} of {total} | **{verdicts['ok']}** | {wrong or '–'} |")
    return "\n".join(lines) + "\n"


def _independent(records: dict[str, Record]) -> str:
    """What the second reference says about ours."""
    ok = [record for record in records.values() if _is_ok(record)]
    if not ok:
        return ""
    far = sorted(name for name, r in records.items() if _is_ok(r) and not r.get("independent_difference", 1) < 1e-3)
    names = f"; not so: {', '.join(f'`{name}`' for name in far)}" if far else ""
    programs = sum(record["returns"] == "program" for record in ok)
    changes = min(record["mask_changes"] for record in ok)
    return (
        f"Of ours that are ok, {len(ok) - len(far)} of {len(ok)} also agree with the network masked without the library's help"
        f"{names}. The masks change outputs by at least {100 * changes:.0f} % of the largest. {programs} come back as captured "
        "programs, since their own classes have sizes written into them.\n"
    )


def _seconds(results: dict[str, Any]) -> str:
    """Over the networks that both get right; of the processor, since the clock also counts what else the machine did."""
    both = [name for name, record in results["ours"].items() if _is_ok(record) and _is_ok(results["theirs"].get(name))]
    if not both:
        return "No network has been measured on both sides yet.\n"
    lines = [
        f"Of the processor, on the {len(both)} networks that both get right. Capturing a network with `torch.export` is most\n"
        "of our time: `plan` does it, `apply` did it again when these were measured, `prune` (`prune_neurons`) is both with\n"
        "one capture. A plan now knows its network again by running it once: `apply` captures only one that has changed.\n",
        "| whose | stage | median | nine tenths below | most |",
        "| :-- | :-- | --: | --: | --: |",
    ]
    for side, whose in SIDES.items():
        for stage in TIMES[side]:
            times = sorted(r["seconds"][stage]["cpu"] for r in map(results[side].get, both) if stage in r["seconds"])
            tenth = times[min(len(times) - 1, int(0.9 * len(times)))]
            lines.append(f"| {whose} | {stage} | {statistics.median(times):.2f} | {tenth:.2f} | {times[-1]:.2f} |")
    return "\n".join(lines) + "\n"


def _failures(records: dict[str, Record]) -> str:
    if not records:
        return "Not measured yet.\n"
    lines = []
    for name, record in records.items():
        if not _is_ok(record):
            text = next(iter(record["failed"].values()), "") or f"in {record['stage']}"
            lines.append(f"- `{name}`: {record['verdict']}; {_short(text)}")
    return "\n".join(lines or ["Nowhere."]) + "\n"


def _table(results: dict[str, Any]) -> str:
    lines = [
        "| network | parameters, M | px | ours | gone, % | plan, s | apply, s | difference | mask changes "
        "| Torch-Pruning | gone, % | graph, s | prune, s |",
        "| :-- | --: | --: | :-- | --: | --: | --: | --: | --: | :-- | --: | --: | --: |",
    ]
    for entry in sorted(entries(), key=lambda e: (e.source, e.name)):
        ours, theirs = (results[side].get(_key(entry), {}) for side in SIDES)
        cells = [
            _key(entry),
            f"{entry.parameters / 1e6:.1f}",
            str(entry.size),
            *_cells(ours, TIMES["ours"]),
            f"{ours['difference']:.0e}" if "difference" in ours else "",
            f"{ours['mask_changes']:.2f}" if "mask_changes" in ours else "",
            *_cells(theirs, TIMES["theirs"]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cells(record: Record, stages: Sequence[str]) -> list[str]:
    seconds = record.get("seconds", {})
    times = [f"{seconds[stage]['cpu']:.1f}" if stage in seconds else "" for stage in stages]
    return [record.get("verdict", "–"), f"{100 * record['gone']:.0f}" if "gone" in record else "", *times]


def _key(entry: Entry) -> str:
    return f"{entry.source}/{entry.name}"


def _is_ok(record: Record | None) -> bool:
    return record is not None and record["verdict"] == "ok"


def _short(text: str) -> str:
    line = " ".join(text.split()).replace("|", "\\|")
    return line if len(line) <= 160 else f"{line[:159]}…"


if __name__ == "__main__":
    found = merge()
    RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(page(found), encoding="utf-8")
    print(_counts(found))
