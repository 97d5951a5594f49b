"""A recipe: what to try, in which order, from gentle to harsh. Plain data, in TOML if you like."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from featherweight.distillation import Lesson
from featherweight.errors import RequestError, check, look_up
from featherweight.search.steps import STEPS, ClusterWeights, PruneNeurons, PruneWeights, Step, is_whole, kind_of
from featherweight.training import Tuning

__all__ = ["DEFAULT_TRAINING", "Recipe"]


DEFAULT_TRAINING = Tuning(epochs=15, min_steps=600)
"""How a network without weights is trained when the recipe does not say."""


@dataclass(frozen=True)
class Recipe:
    """What `compress` does: the steps in order, and how a network without weights is trained first.

    The default is Deep Compression (Han, Mao and Dally, ICLR 2016) on a structurally pruned network.

    Args:
        steps: in order; each tries from gentle to harsh, and ends when the budget is met or accuracy does not come back.
        training: how to train a network that has no weights yet; None for one that is trained.
        lesson: how the network as it was teaches each lighter one that is tuned; None tunes with the data's targets alone.
        seed: every random choice follows from it, in [0, 2**32).

    Raises:
        RequestError: the seed is out of range.

    Example:
        >>> [type(step).__name__ for step in Recipe().steps]
        ['PruneNeurons', 'PruneWeights', 'ClusterWeights']
    """

    steps: tuple[Step, ...] = field(default_factory=lambda: (PruneNeurons(), PruneWeights(), ClusterWeights()))
    training: Tuning | None = None
    lesson: Lesson | None = field(default_factory=Lesson)
    seed: int = 0

    def __post_init__(self) -> None:
        check("seed", self.seed, "a whole number in [0, 2**32)", is_whole(self.seed, 0, 2**32 - 1))

    @staticmethod
    def load(path: str | Path) -> Recipe:
        """Reads a recipe from TOML: `seed`, tables `[training]` and `[lesson]`, and a list `[[step]]`, each with its `kind`.

        `lesson = false` tunes without a teacher.

        Raises:
            RequestError: the file is missing, no TOML, or names what a recipe does not have.
        """
        try:
            raw = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RequestError(f"a recipe must be a readable TOML file, but {path} is not: {error}") from error
        try:
            return _recipe(raw)
        except RequestError as error:
            raise RequestError(f"{error}, in {path}") from error

    def as_dict(self) -> dict[str, Any]:
        """The recipe as plain data, for reports and fingerprints."""
        steps = [{"kind": kind_of(step), **asdict(step)} for step in self.steps]
        training = None if self.training is None else asdict(self.training)
        lesson = {} if self.lesson is None else {"lesson": asdict(self.lesson)}
        return {"seed": self.seed, "training": training, **lesson, "step": steps}


def _recipe(raw: Mapping[str, Any]) -> Recipe:
    _check_names("a recipe", raw, ["seed", "training", "lesson", "step"])
    options: dict[str, Any] = {"seed": raw.get("seed", 0)}
    if "training" in raw:
        options["training"] = _changed(Tuning(), raw["training"], "[training]")
    if raw.get("lesson") is False:
        options["lesson"] = None
    elif "lesson" in raw:
        options["lesson"] = _changed(Lesson(), raw["lesson"], "[lesson]")
    if "step" in raw:
        tables = raw["step"]
        is_list = isinstance(tables, list) and all(isinstance(table, dict) for table in tables)
        check("step", tables, "a list of tables, each under [[step]]", is_list)
        options["steps"] = tuple(_step(table, f"step {number}") for number, table in enumerate(tables, start=1))
    return Recipe(**options)


def _step(table: Mapping[str, Any], where: str) -> Step:
    kind = table.get("kind", "nothing")
    check(f"the kind of {where}", kind, "a text", isinstance(kind, str))
    default = look_up(STEPS, kind, f"the kind of {where}")()
    settings = {key: tuple(value) if isinstance(value, list) else value for key, value in table.items() if key != "kind"}
    if "tuning" in settings:
        settings["tuning"] = _tuning(default.tuning, settings["tuning"], f"the tuning of {where}")
    step: Step = _changed(default, settings, f"{where} ({kind})")
    return step


def _tuning(default: Tuning, settings: Any, what: str) -> Tuning:
    """Where a recipe says how many epochs, so many it is: the default's least number of steps does not hold."""
    names_epochs = isinstance(settings, dict) and "epochs" in settings
    tuning: Tuning = _changed(replace(default, min_steps=0) if names_epochs else default, settings, what)
    return tuning


def _changed(default: Any, settings: Any, what: str) -> Any:
    """A dataclass with some settings changed; those that are not named keep the default."""
    check(what, settings, "a table of settings", isinstance(settings, dict))
    _check_names(what, settings, [f.name for f in fields(default)])
    try:
        return replace(default, **settings)
    except (RequestError, TypeError) as error:  # comparing a text with a number is a TypeError
        raise RequestError(f"{what}: {error}") from error


def _check_names(what: str, settings: Mapping[str, Any], known: Sequence[str]) -> None:
    unknown = [name for name in settings if name not in known]
    if unknown:
        raise RequestError(f"{what} has the settings {', '.join(known)}, got {', '.join(unknown)}")
