"""Supermasks: only scores learn, counts are exact, masks survive surgery and folding."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from featherweight.errors import RequestError
from featherweight.graph.constraint import Constraint, constrain, constraints_of, fold
from featherweight.pruning import Mask, prune_neurons
from featherweight.pruning.supermask import SUPERMASKS, EdgePopup, LearnedMask, set_signed_constants, train_supermask
from featherweight.training import Tuning, evaluate, load_data


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def loader() -> list[tuple[torch.Tensor, torch.Tensor]]:
    inputs = torch.randn(64, 6)
    return list(zip(inputs.split(16), inputs[:, :3].argmax(1).split(16), strict=True))


def originals(model: nn.Module) -> dict[str, torch.Tensor]:
    """The parameters by plain name: under a constraint what it is applied to."""
    found = {}
    for name, parameter in model.named_parameters():
        if not name.endswith("scores"):
            found[name.replace("parametrizations.", "").replace(".original", "")] = parameter.detach()
    return found


@pytest.mark.parametrize("kind", SUPERMASKS)
def test_only_scores_are_trained(kind: str) -> None:
    model = net()
    before = copy.deepcopy(model.state_dict())
    trained = train_supermask(model, loader(), Tuning(epochs=3, learning_rate=0.1), kind=kind)
    for name, parameter in originals(trained).items():
        assert torch.equal(parameter, before[name]), name
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    untrained = train_supermask(model, loader(), Tuning(epochs=0), kind=kind)
    for name in ("0.weight", "3.weight"):
        first, last = (constraints_of(m, name)[0].scores for m in (untrained, trained))
        assert not torch.equal(first, last)
    assert all(parameter.requires_grad for parameter in trained.parameters())


@pytest.mark.parametrize("kind", SUPERMASKS)
def test_weights_are_the_originals_or_zero(kind: str) -> None:
    model = net()
    trained = train_supermask(model, loader(), Tuning(epochs=3, learning_rate=0.3), kind=kind, keep=0.6).eval()
    weight, original = trained[0].weight.detach(), model[0].weight.detach()  # type: ignore[index, union-attr]
    kept = weight != 0
    assert 0 < int(kept.sum()) < 48
    scale = 48 / int(kept.sum()) if kind == "learned-rescaled" else 1.0
    torch.testing.assert_close(weight[kept], original[kept] * scale)  # type: ignore[index]


@pytest.mark.parametrize("kind", SUPERMASKS)
def test_fold_gives_the_same_outputs(kind: str) -> None:
    trained = train_supermask(net(), loader(), Tuning(epochs=2, learning_rate=0.3), kind=kind)
    folded = fold(trained)  # in train mode, where a learned mask draws
    inputs = torch.randn(5, 6)
    assert torch.equal(folded.eval()(inputs), trained.eval()(inputs))
    assert torch.equal(fold(trained).eval()(inputs), trained(inputs))
    assert all(parameter.requires_grad for parameter in folded.parameters())


@pytest.mark.parametrize("kind", SUPERMASKS)
def test_surgery_keeps_the_masks(kind: str) -> None:
    trained = train_supermask(net(), loader(), Tuning(epochs=2, learning_rate=0.3), kind=kind).eval()
    inputs = torch.randn(4, 6)
    smaller = prune_neurons(trained, inputs, sparsity=0.5)
    expected = prune_neurons(fold(trained), inputs, sparsity=0.5)
    assert smaller[0].weight.shape == (4, 6)  # type: ignore[index, union-attr]
    torch.testing.assert_close(smaller.eval()(inputs), expected.eval()(inputs))
    assert [type(c) for c in constraints_of(smaller, "0.weight")] == [type(c) for c in constraints_of(trained, "0.weight")]


CONSTRAINTS = {
    "learned": lambda: LearnedMask(torch.randn(4, 6), generator=torch.Generator()),
    "learned-rescaled": lambda: LearnedMask(torch.randn(4, 6), generator=torch.Generator(), rescale=True),
    "edge-popup": lambda: EdgePopup(torch.randn(4, 6), keep=0.4),
}


@pytest.mark.parametrize("kind", CONSTRAINTS)
@pytest.mark.parametrize("axis", [0, 1])
def test_take_slices_the_weight(kind: str, axis: int) -> None:
    constraint = CONSTRAINTS[kind]().eval()
    original, indices = torch.randn(4, 6), torch.tensor([0, 2, 3])
    whole = constraint(original).detach()
    constraint.take(axis, indices)
    torch.testing.assert_close(constraint(original.index_select(axis, indices)).detach(), whole.index_select(axis, indices))


@pytest.mark.parametrize("kind", CONSTRAINTS)
def test_right_inverse(kind: str) -> None:
    constraint: Constraint = CONSTRAINTS[kind]().eval()
    weight = torch.randn(4, 6) * (constraint(torch.ones(4, 6)) != 0)
    torch.testing.assert_close(constraint(constraint.right_inverse(weight)).detach(), weight)


def test_chains_with_a_mask() -> None:
    layer = nn.Linear(6, 4)
    constrain(layer, "weight", Mask(torch.arange(24).reshape(4, 6) % 2 == 0))
    constrain(layer, "weight", EdgePopup(torch.arange(24.0).reshape(4, 6), keep=0.5))
    assert (layer.weight.flatten() != 0).nonzero().flatten().tolist() == [12, 14, 16, 18, 20, 22]


@pytest.mark.parametrize("keep", [0.01, 0.3, 0.5, 1.0])
def test_edge_popup_keeps_the_exact_count(keep: float) -> None:
    scores = torch.randn(7, 11)
    weight = EdgePopup(scores, keep=keep)(torch.ones(7, 11))
    assert int(weight.sum()) == round(keep * 77)
    assert scores.abs()[weight == 1].min() >= scores.abs()[weight == 0].max() if keep < 1 else True
    ties = EdgePopup(torch.ones(7, 11), keep=keep)(torch.ones(7, 11))
    assert int(ties.sum()) == round(keep * 77)


def test_gradients_are_those_of_the_paper() -> None:
    original, upstream = torch.randn(3, 5, requires_grad=True), torch.randn(3, 5)
    popup = EdgePopup(torch.randn(3, 5), keep=0.4)
    (popup(original) * upstream).sum().backward()
    expected = upstream * original.detach()  # of weights that are out, too
    torch.testing.assert_close(popup.scores.grad, expected * popup.scores.detach().sign())
    assert original.grad is None
    learned = LearnedMask(torch.randn(3, 5), generator=torch.Generator()).train()
    (learned(original) * upstream).sum().backward()
    chance = learned.scores.detach().sigmoid()
    torch.testing.assert_close(learned.scores.grad, expected * chance * (1 - chance))


def test_learned_mask_draws_anew_in_training_only() -> None:
    mask = LearnedMask(torch.full((200, 200), 1.0), generator=torch.Generator())
    ones = torch.ones(200, 200)
    drawn = [mask.train()(ones) for _ in range(2)]
    fixed = mask.eval()(ones)
    assert not torch.equal(drawn[0], drawn[1])
    for draw in (*drawn, fixed):
        assert draw.mean().item() == pytest.approx(1 / (1 + 2.718281828**-1), abs=0.01)
    assert torch.equal(mask.eval()(ones), fixed)
    with torch.no_grad():
        assert torch.equal(mask.train()(ones), fixed)


def test_rescaling_keeps_the_sum_of_a_drawn_mask() -> None:
    weight = LearnedMask(torch.full((30, 40), -1.0), generator=torch.Generator(), rescale=True).train()(torch.ones(30, 40))
    assert weight.sum().item() == pytest.approx(1200)


def test_signed_constants() -> None:
    model = net()
    constants = set_signed_constants(model)
    weight = model[0].weight.detach()  # type: ignore[index, union-attr]
    deviation = (weight - weight.mean()).square().mean().sqrt()
    torch.testing.assert_close(constants[0].weight.detach(), torch.where(weight > 0, deviation, -deviation))  # type: ignore[index, union-attr]
    assert torch.equal(constants[0].bias, model[0].bias)  # type: ignore[index, union-attr, arg-type]


@pytest.mark.parametrize("kind", SUPERMASKS)
def test_a_mask_is_worth_a_training(kind: str) -> None:
    data = load_data("digits", batch_size=64)
    torch.manual_seed(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 300, bias=False), nn.ReLU(), nn.Linear(300, 10, bias=False))
    assert evaluate(model, data.validation) < 0.3
    trained = train_supermask(model, data.train, Tuning(epochs=8, learning_rate=0.1), kind=kind)
    assert evaluate(trained, data.validation) > 0.85


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"kind": "edge-pop"}, "did you mean 'edge-popup'"),
        ({"keep": 0.0}, r"keep must be in \(0, 1\], got 0.0"),
        ({"kind": "learned", "keep": 1.0}, r"keep must be in \(0, 1\), got 1.0"),
        ({"include": ["no"]}, "must leave a weight"),
    ],
)
def test_wrong_requests(options: dict[str, object], complaint: str) -> None:
    with pytest.raises(RequestError, match=complaint):
        train_supermask(net(), loader(), Tuning(), **options)  # type: ignore[arg-type]
