"""Structural pruning is right when the masked network and the smaller one compute the same, on every architecture."""

from __future__ import annotations

import copy
import functools
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.utils import _pytree as pytree

from featherweight.errors import RequestError, UnsupportedOpError
from featherweight.graph import cutting
from featherweight.graph.capture import capture, tensors_of, to_module
from featherweight.graph.groups import Coupling, trace
from featherweight.graph.program import Program, ProgramModule
from featherweight.graph.surgery import Plan, PlannedGroup
from featherweight.nets import NETS
from featherweight.pruning.neurons import make_plan, plan_neurons
from tests.graph.conv_net import IMAGE, ConvNet
from tests.graph.nets import HARD_WIRED, SMALL, Residual
from tests.graph.sequence_nets import ATTENTION, SEQUENCE
from tests.nets.small import COMPACT

Shapes = tuple[tuple[int, ...], ...]

LARGE: dict[str, tuple[Callable[[], nn.Module], Shapes]] = {
    f"{name}-{channels}": (functools.partial(NETS[name], input_shape=shape), (shape,))
    for name in NETS
    if name not in (*COMPACT, "vit")  # they are deep; tests/nets prunes their blocks
    for channels, shape in ((1, (1, 28, 28)), (3, (3, 32, 32)))
}
BATCH = 5


def randomised(make: Callable[[], nn.Module]) -> nn.Module:
    """A network in double precision whose norms neither hide a channel nor look like another's."""
    torch.manual_seed(0)
    model = make().double().eval()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor in (*module.parameters(), *module.buffers()):
                if tensor.is_floating_point():
                    tensor.data.uniform_(0.5, 1.5)
    return model


def inputs(shapes: Shapes, batch: int = BATCH) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randn(batch, *shape, generator=generator, dtype=torch.float64) for shape in shapes)


@functools.cache
def captured(name: str) -> tuple[nn.Module, Shapes, Program, Coupling]:
    make, shapes = {**SMALL, **LARGE}[name]
    model = randomised(make)
    program = capture(model, inputs(shapes, batch=2))
    return model, shapes, program, trace(program, tensors_of(model, program))


def random_plan(program: Program, coupling: Coupling, seed: int, *, keep_one: bool = False) -> Plan:
    """Any number of channels of each group, at least one staying; of one group at least one goes."""
    generator = torch.Generator().manual_seed(seed)
    removed = []
    for group in coupling.groups:
        count = group.size - 1 if keep_one else int(torch.randint(0, group.size, (), generator=generator))
        removed.append((group, torch.randperm(group.size, generator=generator)[:count].sort().values))
    largest = max(range(len(removed)), key=lambda i: removed[i][0].size)
    if not len(removed[largest][1]):
        removed[largest] = (removed[largest][0], torch.tensor([1]))
    return make_plan(program, coupling, removed)


@functools.cache
def cut_to_the_bone(name: str) -> tuple[Plan, nn.Module, tuple[str, ...]]:
    """The plan that keeps one channel of each group, the smaller network, and what was logged on the way."""
    model, _, program, coupling = captured(name)
    plan = random_plan(program, coupling, 9, keep_one=True)
    messages: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("featherweight")
    logger.addHandler(handler)
    smaller = plan.apply(model)
    logger.removeHandler(handler)
    return plan, smaller, tuple(messages)


def difference(a: Any, b: Any) -> float:
    pairs = zip(pytree.tree_leaves(a), pytree.tree_leaves(b), strict=True)
    errors = []
    for x, y in pairs:
        assert x.shape == y.shape
        assert y.isfinite().all()
        assert y.abs().max() > 0
        errors.append(float(((x - y).abs().max() / y.abs().max()).detach()))
    return max(errors)


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


PRUNABLE = [name for name in [*SMALL, *LARGE] if name not in {"tied-across"}]


@pytest.mark.parametrize("name", PRUNABLE)
def test_mask_equals_apply(name: str) -> None:
    model, shapes, program, coupling = captured(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    x = inputs(shapes)
    some = random_plan(program, coupling, 0)
    most, smallest, _ = cut_to_the_bone(name)
    for plan, smaller in ((some, some.apply(model)), (most, smallest)):
        masked = plan.mask(model)
        assert difference(smaller(*x), masked(*x)) < 1e-10
        assert count(smaller) < count(model)
        assert count(masked) == count(model)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert difference(masked(*x), model(*x)) > 1e-3, "the plan must change something, or the test shows nothing"


@pytest.mark.parametrize("name", [*(name for name in PRUNABLE if name not in LARGE), "resnet20-3"])
def test_smaller_network_trains_and_is_captured_again(name: str) -> None:
    _, shapes, _, _ = captured(name)
    smaller, x = copy.deepcopy(cut_to_the_bone(name)[1]), inputs(shapes)
    assert difference(to_module(smaller, inputs(shapes, batch=1))(*x), smaller(*x)) < 1e-10
    smaller.train()
    optimizer = torch.optim.SGD(smaller.parameters(), lr=0.01)
    loss = sum(y.square().mean() for y in pytree.tree_leaves(smaller(*x)))
    loss.backward()
    before = [parameter.detach().clone() for parameter in smaller.parameters()]
    assert all(parameter.grad is not None for parameter in smaller.parameters())
    optimizer.step()
    assert any(not torch.equal(a, b) for a, b in zip(before, smaller.parameters(), strict=True))


@pytest.mark.parametrize("name", PRUNABLE)
def test_own_class_comes_back_where_it_can(name: str) -> None:
    _, smaller, messages = cut_to_the_bone(name)
    assert type(smaller) is (ProgramModule if name in HARD_WIRED else type(captured(name)[0]))
    assert len(messages) == (name in HARD_WIRED)


@pytest.mark.parametrize("name", ["residual", "depthwise", "slopes"])
def test_layers_know_their_new_sizes(name: str) -> None:
    model, _, program, coupling = captured(name)
    for module in random_plan(program, coupling, 4).apply(model).modules():
        if isinstance(module, nn.Conv2d):
            assert module.weight.shape[:2] == (module.out_channels, module.in_channels // module.groups)
        elif isinstance(module, nn.BatchNorm2d):
            assert module.num_features == len(module.running_mean)
        elif isinstance(module, nn.Linear):
            assert tuple(module.weight.shape) == (module.out_features, module.in_features)
        elif isinstance(module, nn.PReLU):
            assert module.num_parameters == len(module.weight)


@pytest.mark.parametrize("name", ["residual", "hard-wired"])
def test_modes_and_frozen_parameters_are_kept(name: str) -> None:
    original, _, program, coupling = captured(name)
    model = SMALL[name][0]().double()
    model.load_state_dict(original.state_dict())
    frozen = next(iter(dict(model.named_parameters())))
    model.get_parameter(frozen).requires_grad_(False)
    for training in (True, False):
        model.train(training)
        smaller = random_plan(program, coupling, 1).apply(model)
        assert smaller.training is training
        assert model.training is training
        assert {key for key, p in smaller.named_parameters() if not p.requires_grad} == {frozen}


def test_mode_of_each_layer_is_kept() -> None:
    _, _, program, coupling = captured("residual")
    model = Residual().double().train()
    model.a[1].eval()  # a frozen batch norm
    smaller = random_plan(program, coupling, 1).apply(model)
    assert smaller.training
    assert not smaller.a[1].training


def test_a_program_stays_a_program() -> None:
    model, shapes, program, coupling = captured("residual")
    twin = to_module(model, inputs(shapes)).eval()
    plan = random_plan(program, coupling, 2)
    smaller = plan.apply(twin)
    assert isinstance(smaller, ProgramModule)
    assert difference(smaller(*inputs(shapes)), plan.apply(model)(*inputs(shapes))) < 1e-12


@pytest.mark.parametrize("name", ATTENTION)
def test_whole_heads_go(name: str) -> None:
    """Head 1 (and what shares its keys) goes, with its features: the masked network and a smaller one agree."""
    model = randomised(ATTENTION[name])
    x = inputs((SEQUENCE,))
    program = capture(model, x)
    coupling = trace(program, tensors_of(model, program), unit="head")
    (heads,) = [group for group in coupling.groups if group.unit == "head"]
    shared = 2 if name in ("grouped-query", "repeated-query") else 1
    assert heads.size == 4 // shared
    plan = make_plan(program, coupling, [(heads, torch.tensor([1]))], unit="head")
    features = {axis: indices for axis, indices in plan.removed.items() if axis[0] in ("q.weight", "qkv.weight")}
    assert all(indices[: 4 * shared] == tuple(range(4 * shared, 8 * shared)) for indices in features.values())
    smaller, masked = plan.apply(model), plan.mask(model)
    assert difference(smaller(*x), masked(*x)) < 1e-10
    assert difference(masked(*x), model(*x)) > 1e-3
    assert Plan.from_json(plan.to_json()) == plan


def test_a_head_that_is_gone_is_as_if_it_had_said_nothing() -> None:
    """Against attention by hand, head by head, without the one that goes."""
    model = randomised(ATTENTION["fused-attention"])
    (x,) = inputs((SEQUENCE,))
    program = capture(model, x)
    coupling = trace(program, tensors_of(model, program), unit="head")
    (heads,) = [group for group in coupling.groups if group.unit == "head"]
    smaller = make_plan(program, coupling, [(heads, torch.tensor([2]))], unit="head").apply(model)

    def mix(normed: torch.Tensor) -> torch.Tensor:
        q, k, v = model.qkv(normed).split(16, dim=-1)
        total = model.project.bias
        for head in (0, 1, 3):
            own = slice(4 * head, 4 * head + 4)
            weights = torch.softmax(q[..., own] @ k[..., own].transpose(1, 2) / 2, -1)
            total = total + (weights @ v[..., own]) @ model.project.weight[:, own].T
        return model.gamma * total

    model.mix = mix
    assert difference(smaller(x), model(x)) < 1e-10


def test_a_plan_checks_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rule that misjudges what goes together must not give a wrong network quietly."""
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    right = cutting._take

    def wrong(tensor: torch.Tensor, name: str, kept: Any) -> torch.Tensor:
        return right(tensor.roll(1, dims=0) if name == "0.weight" else tensor, name, kept)

    plan = plan_neurons(net, torch.zeros(1, 4), sparsity=0.5)
    assert plan.apply(net)(torch.zeros(3, 4)).shape == (3, 2)
    monkeypatch.setattr(cutting, "_take", wrong)
    with pytest.raises(UnsupportedOpError, match="must compute what the masked one does"):
        plan.apply(net)


def test_empty_plan_is_the_identity() -> None:
    model, shapes, _, _ = captured("residual")
    for same in (Plan({}).mask(model), Plan({}).apply(model)):
        assert same is not model
        assert torch.equal(same(*inputs(shapes)), model(*inputs(shapes)))


def test_plans_follow_each_other() -> None:
    model, shapes, program, coupling = captured("residual")
    once = random_plan(program, coupling, 5).apply(model)
    program = capture(once, inputs(shapes))
    plan = random_plan(program, trace(program, tensors_of(once, program)), 6)
    assert difference(plan.apply(once)(*inputs(shapes)), plan.mask(once)(*inputs(shapes))) < 1e-10


def test_plan_round_trip_and_replay(tmp_path: Any) -> None:
    model, shapes, program, coupling = captured("dense")
    plan = random_plan(program, coupling, 7)
    assert Plan.from_json(plan.to_json()) == plan
    plan.save(tmp_path / "plan.json")
    loaded = Plan.load(tmp_path / "plan.json")
    assert loaded == plan
    torch.manual_seed(123)
    fresh = SMALL["dense"][0]().double()
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(loaded.apply(fresh.eval())(*inputs(shapes)), plan.apply(model)(*inputs(shapes)))


def test_plan_prints_groups_and_locks() -> None:
    groups = (PlannedGroup("conv1.weight", ("conv1.weight", "conv1.bias", "fc.weight"), 3, 20),)
    text = str(Plan({("conv1.weight", 0): (1,)}, groups, {"fc.bias": "it is an output of the network"}))
    assert [line.split() for line in text.splitlines()] == [
        "conv1.weight 3 of 20 conv1.bias, fc.weight".split(),
        "fc.bias locked: it is an output of the network".split(),
    ]


STEM = {("stem.weight", 0): (2,), ("stem.bias", 0): (2,), ("last.weight", 1): (2,)}
HEAD = {("head.2.weight", 0): (1,), ("head.2.bias", 0): (1,)}


@pytest.mark.parametrize(
    ("removed", "message"),
    [
        ({("nothing.weight", 0): (0,)}, "nothing.weight"),
        ({("stem.weight", 0): (8,)}, "stem.weight"),
        ({("stem.weight", 0): (-1,)}, "stem.weight"),
        ({("stem.weight", 4): (0,)}, "stem.weight"),
        ({("stem.weight", -1): (0,)}, "stem.weight"),
        ({("stem.weight", 0): (2,)}, "whole channels"),
        ({**STEM, ("stem.bias", 0): (3,)}, "whole channels"),
        ({**STEM, ("stem.bias", 0): (2, 3)}, "whole channels"),
        ({key: tuple(range(8)) for key in STEM}, "at least one"),
        (HEAD, "output of the network"),
        ({("stem.weight", 1): (0,)}, "fixed size"),
        ({**STEM, ("stem.weight", 2): (1,)}, "axis 2"),
    ],
)
def test_wrong_plans_are_refused(removed: dict[tuple[str, int], tuple[int, ...]], message: str) -> None:
    model, _, program, _ = captured("plain")
    assert Plan(STEM, inputs=program.inputs).apply(model).stem.out_channels == 7
    with pytest.raises(RequestError, match=message):
        Plan(removed, inputs=program.inputs).apply(model)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "3",
        '{"removed": [], "groups": [], "locked": {}, "inputs": []}',
        '{"removed": {"a": {"x": [1]}}, "groups": [], "locked": {}, "inputs": []}',
        '{"removed": {}, "groups": [[1]], "locked": {}, "inputs": []}',
        '{"removed": {}, "groups": [], "locked": {}, "inputs": [["x", [null], "load"]]}',
        '{"removed": {}, "groups": [], "locked": {}, "inputs": [["x", [null], "no_such_dtype"]]}',
    ],
)
def test_what_is_no_plan_is_refused(text: str, tmp_path: Any) -> None:
    with pytest.raises(RequestError):
        Plan.from_json(text)
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(RequestError):
        Plan.load(tmp_path / "plan.json")


def test_missing_and_binary_plan_files_are_refused(tmp_path: Any) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for name in ("missing", "binary", "."):
        with pytest.raises(RequestError, match="plan"):
            Plan.load(tmp_path / name)


class Padding(nn.Module):
    """A bias that is one long axis of several channels' shares: some locked, some free."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 5), nn.Linear(11, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(torch.cat([x, self.a(x)], 1))


def test_locked_part_of_an_axis_stays() -> None:
    model = Padding().double()
    program = capture(model, torch.zeros(1, 6, dtype=torch.float64))
    free = {("a.weight", 0): (1,), ("a.bias", 0): (1,), ("b.weight", 1): (7,)}
    assert Plan(free, inputs=program.inputs).apply(model).b.in_features == 10
    with pytest.raises(RequestError, match="index 2 of axis 1"):
        Plan({**free, ("b.weight", 1): (2, 7)}, inputs=program.inputs).apply(model)


def test_own_class_of_another_shape_is_not_mistaken_for_equal() -> None:
    class Flat(ConvNet):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = super().forward(x)
            return y[:, :1] if self.stem.out_channels < 8 and not torch.compiler.is_exporting() else y

    model = Flat().double().eval()
    program = capture(model, inputs(((3, 8, 8),)))
    assert isinstance(Plan(STEM, inputs=program.inputs).apply(model), ProgramModule)


def test_mask_folds_constraints() -> None:
    model = ConvNet().double()
    parametrize.register_parametrization(model.stem, "weight", nn.Tanh())
    weight = model.stem.weight.detach()
    masked = Plan(STEM, inputs=capture(model, torch.zeros(1, *IMAGE, dtype=torch.float64)).inputs).mask(model)
    assert not parametrize.is_parametrized(masked.stem)
    assert torch.equal(masked.stem.weight[3:], weight[3:])
    assert not masked.stem.weight[2].any()
    assert parametrize.is_parametrized(model.stem)


def test_a_plan_for_another_network_says_which_tensor_differs() -> None:
    def net(width: int) -> nn.Module:
        return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 2))

    plan = plan_neurons(net(8), torch.zeros(1, 4), sparsity=0.5)
    other = net(16)
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    for use in (plan.apply, plan.mask):
        with pytest.raises(RequestError, match=r"'0.weight' has shape \(16, 4\) here and \(8, 4\) there"):
            use(other)
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())
