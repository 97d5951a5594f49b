"""What a captured program is, what it computes, and what cannot be captured."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize

from featherweight.errors import CaptureError, UnsupportedOpError
from featherweight.graph.capture import capture, example_of, tensors_of, to_module
from featherweight.graph.exported import from_exported
from featherweight.graph.program import ProgramModule, Ref
from featherweight.graph.shapes import infer_shapes
from tests.graph.conv_net import ConvNet
from tests.graph.nets import SMALL, ManyOutputs, Residual, Tied, TwoInputs


def image(batch: int, channels: int = 3) -> torch.Tensor:
    return torch.randn(batch, channels, 8, 8)


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_any_batch_size(batch: int) -> None:
    model = ConvNet().eval()
    program = capture(model, image(batch))
    assert program.inputs[0].shape == (None, 3, 8, 8)
    twin = ProgramModule(program, tensors_of(model, program)).eval()
    for other in (1, 2, 5):
        x = image(other)
        torch.testing.assert_close(twin(x), model(x))


@pytest.mark.parametrize("name", ["chunked", "folded", "sequence", "steps", "many-outputs"])
def test_shapes_are_those_of_a_run(name: str) -> None:
    make, shapes = SMALL[name]
    model = make().eval()
    program = capture(model, tuple(torch.zeros(1, *shape) for shape in shapes))
    values = infer_shapes(program, tensors_of(model, program), batch=3)
    output = model(*(torch.zeros(3, *shape) for shape in shapes))
    if isinstance(output, torch.Tensor):
        assert values[program.output.index].shape == output.shape
    assert not any(isinstance(v, torch.Tensor) and v.device.type != "meta" for v in values)


def test_original_is_untouched() -> None:
    model = Residual().train()
    model.a[1].eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    to_module(model, image(2))
    assert [module.training for module in model.modules()] == modes
    after = model.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_twin_has_its_own_weights_under_the_same_names() -> None:
    model = Residual()
    twin = to_module(model, image(1))
    assert {key for key in model.state_dict() if "num_batches" not in key} == set(twin.state_dict())
    assert {key for key, _ in model.named_parameters()} == {key for key, _ in twin.named_parameters()}
    with torch.no_grad():
        twin.stem.weight.zero_()
    assert model.stem.weight.abs().max() > 0


def test_twin_follows_mode_and_frozen_parameters() -> None:
    model = ConvNet().eval()
    model.stem.weight.requires_grad_(False)
    twin = to_module(model, image(1))
    assert not twin.training
    assert {key for key, p in twin.named_parameters() if not p.requires_grad} == {"stem.weight"}
    assert to_module(model.train(), image(1)).training


def test_tied_tensors_appear_once() -> None:
    model = Tied()
    program = capture(model, image(1))
    names = [spec.name for spec in program.tensors]
    assert len(names) == len(set(names))
    assert [name for name in names if name in {"a.weight", "b.weight"}] in (["a.weight"], ["b.weight"])
    assert sum(p.numel() for p in to_module(model, image(1)).parameters()) == sum(p.numel() for p in model.parameters())


def test_unread_tensors_are_left_out() -> None:
    model = ConvNet()
    model.unused = nn.Linear(3, 3)
    assert not any(spec.name.startswith("unused") for spec in capture(model, image(1)).tensors)


def test_constraints_are_folded() -> None:
    model = ConvNet().eval()
    parametrize.register_parametrization(model.stem, "weight", nn.Tanh())
    program = capture(model, image(1))
    assert "stem.weight" in {spec.name for spec in program.tensors}
    assert not any("parametrizations" in spec.name for spec in program.tensors)
    assert torch.equal(tensors_of(model, program)["stem.weight"], model.stem.weight)
    x = image(2)
    torch.testing.assert_close(to_module(model, image(1))(x), model(x))
    assert parametrize.is_parametrized(model.stem)


def test_structures_and_names_of_inputs_and_outputs() -> None:
    many = ManyOutputs().eval()
    twin, x = to_module(many, image(1)), image(3)
    torch.testing.assert_close(twin(x), many(x))
    two = TwoInputs().eval()
    twin, y = to_module(two, (image(1), image(1, 2))), image(3, 2)
    torch.testing.assert_close(twin(x, y), two(x, y))
    torch.testing.assert_close(twin(x, y=y), two(x, y))
    torch.testing.assert_close(twin(y=y, x=x), two(x, y))
    for args, kwargs in (((x,), {}), ((x, y, y), {}), ((x, y), {"y": y}), ((x,), {"z": y})):
        with pytest.raises(TypeError, match="2 inputs"):
            twin(*args, **kwargs)


def test_capture_of_a_program_is_that_program() -> None:
    twin = to_module(ConvNet(), image(1))
    assert capture(twin, image(1)) is twin.program


def test_exported_program_of_the_users() -> None:
    model = ConvNet().eval()
    program = from_exported(torch.export.export(model, (image(4),)))
    assert program.inputs[0].shape == (4, 3, 8, 8)
    x = image(4)
    torch.testing.assert_close(ProgramModule(program, tensors_of(model, program))(x), model(x))


def test_example_has_the_shapes_and_repeats() -> None:
    program = capture(TwoInputs(), (image(1), image(1, 2)))
    first, second = program.example(batch=5, seed=3), program.example(batch=5, seed=3)
    assert [tuple(x.shape) for x in first] == [(5, 3, 8, 8), (5, 2, 8, 8)]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(program.example(seed=1)[0], program.example(seed=2)[0])


class Embedded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 4)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.table(tokens).mean(1)


def test_whole_numbers_as_input() -> None:
    model = Embedded()
    twin = to_module(model, torch.zeros(1, 6, dtype=torch.int64))
    assert twin.program.example()[0].dtype == torch.int64
    tokens = torch.randint(0, 10, (3, 6))
    torch.testing.assert_close(twin(tokens), model(tokens))


class OnValues(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 0 else -x


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls.add_(1)
        return x * self.calls


class InPlace(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mul_(2)


class ThroughView(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x[:, 1:].relu_()
        return x + 1


class FixedBatch(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(len(x), -1)


class Numbers(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.tensor([1.0, 2.0, 3.0])[:, None, None]


def test_numbers_in_the_code_stay_with_the_program() -> None:
    model = Numbers()
    x = torch.randn(2, 3, 4, 4)
    program = capture(model, x)
    (name,) = program.constants
    assert program.constants[name].tolist() == [1.0, 2.0, 3.0]
    assert torch.equal(to_module(model, x)(x), model(x))
    assert torch.equal(to_module(to_module(model, x), x)(x), model(x))


class Remembering(nn.Module):
    """Keeps in eval mode what it computed from its parameter, so that a capture would see a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.bias, self.drop = nn.Parameter(torch.randn(3)), nn.Dropout(0.9)
        self.kept: dict[str, torch.Tensor] = {}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            return self.drop(x) + self.bias[[2, 0, 1]]
        if "bias" not in self.kept:
            self.kept["bias"] = self.bias[[2, 0, 1]]
        return self.drop(x) + self.kept["bias"]


def test_what_a_module_remembers_of_a_parameter_is_computed_from_it() -> None:
    model, x = nn.Sequential(nn.Linear(4, 3), Remembering()).eval(), torch.randn(2, 4)
    with torch.no_grad():
        expected = model(x)
    program = capture(model, x)
    assert "1.bias" in {spec.name for spec in program.tensors}
    assert not any(tensor.is_floating_point() for tensor in program.constants.values())
    assert torch.equal(to_module(model, x)(x), expected)
    assert not model[1].training


class PartlyFrozen(nn.Module):
    """A backbone that forward() freezes itself."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head = nn.Linear(4, 3), nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            x = self.backbone(x).relu()
        return self.head(x)


def test_what_no_grad_freezes_stays_frozen() -> None:
    model, x = PartlyFrozen(), torch.randn(2, 4)
    twin = to_module(model, x)
    assert torch.equal(twin(x), model(x))
    twin(x).sum().backward()
    assert {name for name, p in twin.named_parameters() if p.grad is not None} == {"head.weight", "head.bias"}


class Raising(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no such luck")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (OnValues(), "control flow on tensor values"),
        (Counting(), "changes 'calls'"),
        (InPlace(), r"mul_.Tensor at .*:\d+ changes 'x'"),
        (ThroughView(), "changes 'x'"),
        (FixedBatch(), "any batch size"),
        (Raising(), "no such luck"),
    ],
)
def test_what_cannot_be_captured(model: nn.Module, message: str) -> None:
    with pytest.raises(CaptureError, match=message):
        capture(model, image(3))


class Bernoulli(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x + 1
        return torch.bernoulli(torch.sigmoid(y))


def test_operation_not_allowed_is_named_with_its_line() -> None:
    line = inspect.getsourcelines(Bernoulli)[1] + 3
    with pytest.raises(UnsupportedOpError, match=rf"bernoulli.*test_capture\.py:{line}"):
        capture(Bernoulli(), image(1))


def test_origin_is_the_line_of_the_users_forward() -> None:
    program = capture(Normal(), image(1))
    line = inspect.getsourcelines(Normal)[1]
    assert [node.origin.rsplit(":", 1)[1] for node in program.nodes if node.op != "sym_size.int"] == [
        str(line + 6),
        str(line + 7),
    ]
    assert all(node.origin.split(":")[0].endswith("test_capture.py") for node in program.nodes if node.op != "sym_size.int")


class Normal(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)  # inside torch: conv.py
        return F.relu(x)


def test_tensors_of_another_network_are_refused() -> None:
    program = capture(ConvNet(), image(1))
    with pytest.raises(CaptureError, match=r"stem\.weight"):
        tensors_of(nn.Linear(2, 2), program)


def test_refs_only_look_back() -> None:
    program = capture(Residual(), image(1))

    def indices(value: Any) -> list[int]:
        if isinstance(value, Ref):
            return [value.index]
        return [i for v in value for i in indices(v)] if isinstance(value, list | tuple) else []

    for position, node in enumerate(program.nodes):
        assert all(i < program.first_node + position for i in indices(node.args))


class Lookups(nn.Module):
    """Two tables read the words, and the smaller one has 3 rows; the places are shifted before they are looked up."""

    def __init__(self) -> None:
        super().__init__()
        self.large, self.small = nn.Embedding(10, 4), nn.Embedding(3, 4)

    def forward(self, words: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        given = (words != 0).float()[..., None]
        return (given * self.large(words) + self.small(words) + self.large(places + 9)).mean(1)


def test_example_of_a_network_looks_up_rows_that_are_there() -> None:
    twin = to_module(Lookups(), (torch.zeros(1, 6, dtype=torch.int64),) * 2)
    words, places = example_of(twin, batch=50, seed=1)
    assert words.unique().tolist() == [0, 1, 2]  # not all padding
    assert places.unique().tolist() == [0]  # which rows are meant cannot be told: 0 is safe
    assert torch.isfinite(twin(words, places)).all()
    again = example_of(twin, batch=50, seed=1)
    assert torch.equal(again[0], words)
