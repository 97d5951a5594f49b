"""The `featherweight` command: one function per verb."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from featherweight.errors import FeatherweightError, RequestError

if TYPE_CHECKING:
    from torch import nn

    from featherweight.training import Data

__all__ = ["app", "main"]

app = typer.Typer(
    help="Makes trained PyTorch networks light enough for the device they must run on.",
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
)  # fmt: skip

DONE, FAILED, WRONG_REQUEST, BUDGET_NOT_MET, INTERRUPTED = 0, 1, 2, 3, 130

ModelOption = Annotated[str, typer.Argument(metavar="MODEL", help="zoo:NAME, package.module:function, or a .pt2 or .fw file")]
DataOption = Annotated[
    str, typer.Option("--data", help="digits, mnist, fashion-mnist, an image folder, an .npz, or module:function")
]
DataDirOption = Annotated[Path | None, typer.Option("--data-dir", help="where the files of a named data set lie")]
WeightsOption = Annotated[Path | None, typer.Option("--weights", help="a state dict: .safetensors, .pt or .pth")]


@contextmanager
def _told_plainly(checkpoint: Path | None = None) -> Iterator[None]:
    """Every error ends with an exit code and a sentence, never with a traceback."""
    try:
        yield
    except FeatherweightError as error:
        _end(WRONG_REQUEST, str(error))
    except OSError as error:
        _end(WRONG_REQUEST, f"the system refused: {error}")
    except KeyboardInterrupt:
        kept = checkpoint is not None and checkpoint.exists()
        _end(INTERRUPTED, "interrupted" + "; what was done is kept, the same command with --resume goes on" * kept)
    except typer.Exit:
        raise
    except Exception as error:  # of the user's own model or data; or a bug of ours
        *_, last = traceback.extract_tb(error.__traceback__)
        _end(FAILED, f"unexpected {type(error).__name__} at {last.filename}:{last.lineno}: {error}")


def _end(code: int, message: str) -> NoReturn:
    typer.echo(f"featherweight: {message}", err=True)
    raise typer.Exit(code)


@app.command()
def compress(
    model: ModelOption,
    data: DataOption,
    out: Annotated[Path, typer.Option("--out", help="the .fw file to write; a report lands beside it")],
    data_dir: DataDirOption = None,
    weights: WeightsOption = None,
    budget: Annotated[str, typer.Option("--budget", help="size=44KB,accuracy_drop=0.2pp,macs=2M,latency=2ms")] = "",
    recipe: Annotated[Path | None, typer.Option("--recipe", help="a TOML file: the steps in order")] = None,
    trained: Annotated[bool, typer.Option("--trained", help="package.module:function returns a trained network")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="go on with a run that was broken off")] = False,
) -> None:
    """Makes a network as light as the budget asks; without weights it is trained first."""
    with _told_plainly(out.with_name(f"{out.name}.checkpoint")):
        from featherweight.reporting.progress import RichProgress
        from featherweight.reporting.tables import print_before_after
        from featherweight.search.budget import Budget
        from featherweight.search.compress import DEFAULT_DROP
        from featherweight.search.compress import compress as run
        from featherweight.search.outputs import check_writable, report_path
        from featherweight.search.recipe import DEFAULT_TRAINING, Recipe
        from featherweight.search.source import has_weights

        if out.suffix != ".fw":
            raise RequestError(f"--out must end in .fw, got {str(out)!r}")
        check_writable(out)
        limits = Budget.parse(budget)
        plan = Recipe() if recipe is None else Recipe.load(recipe)
        loaders, net = _load(model, data, data_dir, weights, plan.seed)
        training = None
        if weights is None and not trained and not has_weights(model):
            training = plan.training or DEFAULT_TRAINING
            if not resume:  # a run to resume may be long past its training
                epochs = training.epochs_on(loaders.train)
                typer.echo(f"{model} has no weights: it is trained first, for {epochs} epochs", err=True)
        plan = replace(plan, training=training)
        with RichProgress() as progress:
            found = run(net, loaders, budget=limits, recipe=plan, out=out, resume=resume, progress=progress)
        print_before_after(found.before, found.after)
        typer.echo(f"{out}: {found.after.size_bytes} bytes; the report is {report_path(out)}")
        if found.stopped:
            typer.echo(f"featherweight: stopped early, with the last good network: {found.stopped}", err=True)
        if found.unmet:
            lines = ["the budget could not be met; this is the best network found:", *found.unmet]
            if limits.accuracy_drop is None:
                lines.append(f"accuracy may fall by {DEFAULT_DROP} pp unless the budget names accuracy_drop")
            _end(BUDGET_NOT_MET, "\n  ".join(lines))


@app.command()
def measure(
    model: ModelOption,
    data: DataOption,
    data_dir: DataDirOption = None,
    weights: WeightsOption = None,
    threads: Annotated[int, typer.Option("--threads", help="of the latency runs")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON instead of a table")] = False,
) -> None:
    """Measures a network: accuracy on the test data, bytes, parameters, MACs, and latency in ONNX Runtime."""
    with _told_plainly():
        from featherweight.measuring import measure as run
        from featherweight.reporting.progress import RichProgress
        from featherweight.reporting.tables import print_report
        from featherweight.training import check_fits

        loaders, net = _load(model, data, data_dir, weights)
        check_fits(loaders, net)
        if model.startswith("zoo:") and weights is None:
            typer.echo(f"{model} without --weights has random weights: its accuracy is chance", err=True)
        subject: nn.Module | str = model if model.endswith(".fw") else net
        with RichProgress() as progress:
            report = run(subject, loaders.example, data=loaders.test, threads=threads, progress=progress)
        if as_json:
            typer.echo(json.dumps(report.as_dict(), indent=2))
        else:
            print_report(report)


@app.command()
def inspect(file: Annotated[Path, typer.Argument(metavar="FILE.fw")]) -> None:
    """Shows what a .fw file is made of: each tensor's coder, bits per weight and bytes, the architecture, the total."""
    with _told_plainly():
        from featherweight.packaging import inspect as run
        from featherweight.reporting.tables import print_contents

        print_contents(run(file))


@app.command()
def export(
    file: Annotated[Path, typer.Argument(metavar="FILE.fw")],
    out: Annotated[Path, typer.Argument(metavar="OUT")],
    to: Annotated[str, typer.Option("--to", help="the format: onnx")] = "onnx",
) -> None:
    """Writes a .fw file in another format."""
    with _told_plainly():
        from featherweight.errors import look_up
        from featherweight.exporting.onnx import to_onnx
        from featherweight.packaging import load

        write = look_up({"onnx": to_onnx}, to, "--to")
        net = load(file)
        write(net, out, net.program.example())
        typer.echo(f"{out}: {out.stat().st_size} bytes")


@app.command()
def reproduce(
    name: Annotated[str, typer.Argument(metavar="NAME", help="of the experiment, see --list")] = "",
    names: Annotated[bool, typer.Option("--list", help="print the names of the experiments, and do nothing else")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="small settings: two minutes on one core")] = False,
    out: Annotated[Path | None, typer.Option("--out", help="a folder; by default reproduced/NAME, or NAME-quick")] = None,
    data_dir: DataDirOption = None,
) -> None:
    """Runs an experiment of a paper again: its plot, and a table of their numbers beside ours."""
    with _told_plainly():
        from featherweight.errors import look_up
        from featherweight.experiments import EXPERIMENTS
        from featherweight.experiments import reproduce as run
        from featherweight.reporting.progress import RichProgress

        if names:
            typer.echo("\n".join(EXPERIMENTS))
            return
        experiment = look_up(EXPERIMENTS, name, "an experiment")
        folder = out or Path("reproduced") / (f"{name}-quick" if quick else name)
        try:
            with RichProgress() as progress:
                table = run(name, experiment, folder, quick=quick, data_dir=data_dir, progress=progress)
        except KeyboardInterrupt:
            _end(INTERRUPTED, f"interrupted; what was done is kept in {folder}, the same command goes on")
        typer.echo(table)
        typer.echo(f"\nthe page, the plot and the numbers are in {folder}", err=True)


def _load(model: str, data: str, data_dir: Path | None, weights: Path | None, seed: int = 0) -> tuple[Data, nn.Module]:
    from featherweight.search.source import load_model
    from featherweight.training import load_data

    if "" not in sys.path:
        sys.path.insert(0, "")  # the user's own modules are found in the working directory, as python -m finds them
    loaders = load_data(data, data_dir=data_dir, seed=seed)
    net = load_model(model, weights=weights, input_shape=loaders.input_shape, classes=loaders.classes, seed=seed)
    return loaders, net


def main() -> None:
    """Runs the command."""
    app(prog_name="featherweight")


if __name__ == "__main__":
    main()
