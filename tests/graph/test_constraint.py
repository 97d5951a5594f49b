"""Constraints chain, fold, are sliced by surgery, and never leak into the model they were copied from."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from featherweight.graph.capture import capture
from featherweight.graph.constraint import Constraint, constrain, constrained, constraints_of, duplicate, fold
from featherweight.graph.surgery import Plan
from featherweight.pruning import Mask, plan_neurons, prune_weights
from featherweight.quantization import Codebook, cluster_weights
from tests.graph.conv_net import ConvNet
from tests.graph.nets import Depthwise, HardWired


def half_mask(weight: torch.Tensor, seed: int = 0) -> torch.Tensor:
    return torch.rand(weight.shape, generator=torch.Generator().manual_seed(seed)) < 0.5


def masked(model: nn.Module, *names: str) -> nn.Module:
    for name in names:
        owner, _, leaf = name.rpartition(".")
        constrain(model, name, Mask(half_mask(getattr(model.get_submodule(owner), leaf))))
    return model


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))


def test_names_of_constrained_tensors() -> None:
    model = masked(net(), "0.weight", "0.bias", "2.weight")
    assert {name: len(chain) for name, chain in constrained(model).items()} == {"0.weight": 1, "0.bias": 1, "2.weight": 1}
    assert constraints_of(model, "2.bias") == []
    assert constrained(net()) == {}
    assert list(constrained(masked(nn.Linear(2, 2), "weight"))) == ["weight"]


def test_folding_the_copy_leaves_the_original() -> None:
    """torch keeps the constrained names in a class that deep copies share: folding a plain copy would free the original too."""
    model = masked(net(), "0.weight")
    weight = model[0].weight.detach().clone()
    folded = fold(model)
    assert not constrained(folded)
    assert torch.equal(folded[0].weight, weight)
    assert isinstance(folded[0].weight, nn.Parameter)
    assert type(folded[0]) is nn.Linear
    assert list(constrained(model)) == ["0.weight"]
    assert torch.equal(model[0].weight, weight)
    with torch.no_grad():
        model[0].parametrizations.weight.original.fill_(1)
    assert torch.equal(model[0].weight, half_mask(weight).float())
    assert torch.equal(folded[0].weight, weight)


def test_constraining_a_duplicate_leaves_the_original() -> None:
    model = masked(net(), "0.weight")
    twin = duplicate(model)
    masked(twin, "0.bias")
    assert list(constrained(twin)) == ["0.weight", "0.bias"]
    assert list(constrained(model)) == ["0.weight"]
    assert isinstance(model[0].bias, nn.Parameter)
    again = duplicate(duplicate(twin))
    assert not constrained(fold(again))
    assert list(constrained(twin)) == ["0.weight", "0.bias"]
    torch.testing.assert_close(again(torch.ones(2, 6)), twin(torch.ones(2, 6)))


@pytest.mark.parametrize("make", [net, lambda: masked(net(), "0.weight"), lambda: cluster_weights(net(), clusters=2)])
def test_duplicate_and_fold_compute_the_same(make: object) -> None:
    model, x = make(), torch.randn(4, 6)  # type: ignore[operator]
    for copy in (duplicate(model), fold(model)):
        assert torch.equal(copy(x), model(x))
        assert all(a is not b for a, b in zip(copy.parameters(), model.parameters(), strict=True))
    assert set(fold(model).state_dict()) == set(net().state_dict())


def test_chain_of_codebook_and_mask() -> None:
    clustered = cluster_weights(net(), clusters=3)
    values = set(clustered[0].weight.unique().tolist())
    model = prune_weights(clustered, sparsity=0.5, allocation="uniform")
    assert [type(c) for c in constraints_of(model, "0.weight")] == [Codebook, Mask]
    assert int((model[0].weight == 0).sum()) == 15
    assert set(model[0].weight.unique().tolist()) <= values | {0.0}
    assert [type(c) for c in constraints_of(clustered, "0.weight")] == [Codebook]
    assert len(list(model[0].parametrizations.weight.parameters())) == 1
    assert model[0].parametrizations.weight.original.shape == (3,)
    model(torch.ones(2, 6)).sum().backward()
    assert model[0].parametrizations.weight.original.grad.shape == (3,)


@pytest.mark.parametrize("make", [ConvNet, Depthwise, HardWired])
def test_surgery_takes_constraints_along(make: type[nn.Module]) -> None:
    """The smaller network has the weights of the larger where they stayed, and stays constrained: masks and shared values."""
    torch.manual_seed(0)
    model = prune_weights(cluster_weights(make().double(), clusters=5), sparsity=0.4).eval()
    example = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    plan = plan_neurons(model, example, sparsity=0.4)
    smaller = plan.apply(model)
    torch.testing.assert_close(smaller(example), plan.mask(model)(example), rtol=1e-9, atol=1e-12)
    chains = {name: [type(c) for c in chain] for name, chain in constrained(smaller).items()}
    assert chains == {name: [type(c) for c in chain] for name, chain in constrained(model).items()}
    for name, chain in constrained(smaller).items():
        owner, _, leaf = name.rpartition(".")
        weight = getattr(smaller.get_submodule(owner), leaf)
        assert all(tensor.shape == weight.shape for c in chain for tensor in c.buffers())
        assert len(weight.unique()) <= 5 + 1
    zeros = {name: w == 0 for name, w in fold(smaller).named_parameters()}
    optimizer = torch.optim.SGD(smaller.parameters(), lr=0.1, momentum=0.9)
    for _ in range(3):
        optimizer.zero_grad()
        smaller(example).square().sum().backward()
        optimizer.step()
    after = dict(fold(smaller).named_parameters())
    assert all((after[name][zero] == 0).all() for name, zero in zeros.items())
    assert capture(smaller, example).inputs[0].shape == (None, 3, 8, 8)


def test_surgery_leaves_the_constrained_original() -> None:
    model = masked(ConvNet(), "stem.weight")
    program = capture(model, torch.zeros(1, 3, 8, 8))
    removed = {("stem.weight", 0): (0, 3), ("stem.bias", 0): (0, 3), ("last.weight", 1): (0, 3)}
    smaller = Plan(removed, inputs=program.inputs).apply(model)
    kept = torch.tensor([1, 2, 4, 5, 6, 7])
    mask = constraints_of(model, "stem.weight")[0].mask
    assert mask.shape == (8, 3, 3, 3)
    assert torch.equal(constraints_of(smaller, "stem.weight")[0].mask, mask[kept])
    assert torch.equal(smaller.stem.weight, model.stem.weight[kept])


def test_surgery_folds_parametrizations_of_others(caplog: pytest.LogCaptureFixture) -> None:
    model = ConvNet().double().eval()
    nn.utils.parametrizations.weight_norm(model.stem)
    example = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    plan = plan_neurons(model, example, sparsity=0.5)
    torch.testing.assert_close(plan.apply(model)(example), plan.mask(model)(example))
    assert "stem.weight has a parametrization" in caplog.text


def test_a_constraint_must_say_what_it_does() -> None:
    for call in (Constraint().forward, Constraint().right_inverse, lambda x: Constraint().take(0, x)):
        with pytest.raises(NotImplementedError):
            call(torch.zeros(1))


def test_other_parametrizations_are_folded_too() -> None:
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(3, 3))
    folded = fold(layer)
    assert not parametrize.is_parametrized(folded)
    torch.testing.assert_close(folded.weight, layer.weight)
    assert parametrize.is_parametrized(layer)
