"""The activations of a channel are found in any architecture: against hooks on the module itself."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from featherweight.graph.cutting import study
from featherweight.pruning.activations import channel_activity
from featherweight.training.statistics import Evidence
from tests.pruning.neuron_nets import DATA, EXAMPLE, captured_chain, chain

IMAGES = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(2))


def activity(model: nn.Module, inputs: torch.Tensor) -> dict[str, torch.Tensor]:
    network = study(model, inputs[:1])
    groups = network.coupling.groups
    batches = [(inputs[:2], torch.zeros(2)), (inputs[2:], torch.zeros(len(inputs) - 2))]
    found = channel_activity(groups, network, Evidence(model, batches), measure=torch.abs)
    return {group.name: scores for group, scores in zip(groups, found, strict=True)}


def assert_means(scores: torch.Tensor, *values: torch.Tensor, axis: int = 1) -> None:
    """`scores` are the means over all numbers of each channel of the values together."""
    lines = torch.cat([value.detach().movedim(axis, 0).flatten(1) for value in values], dim=1)
    torch.testing.assert_close(scores.float(), lines.abs().mean(dim=1), rtol=1e-5, atol=1e-6)


def test_behind_a_nonlinearity_and_before_pooling() -> None:
    net, network = chain(), study(captured_chain(), EXAMPLE)
    seen: dict[int, list[torch.Tensor]] = {2: [], 5: []}
    for index, outputs in seen.items():
        net[index].register_forward_hook(lambda module, args, output, outputs=outputs: outputs.append(output.clone()))
    for inputs, _ in DATA:
        net(inputs)
    found = channel_activity(network.coupling.groups, network, Evidence(net, DATA), measure=lambda value: value != 0)
    for index, scores in zip((2, 5), found, strict=True):
        nonzero = torch.cat([output.movedim(1, 0).flatten(1) for output in seen[index]], dim=1) != 0
        torch.testing.assert_close(scores, nonzero.double().mean(dim=1))
        assert 0.1 < float(scores.mean()) < 0.9


def test_a_residual_stream_is_seen_wherever_it_is_read() -> None:
    class Stream(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.block, self.out = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3, padding=1), nn.Linear(6, 2)

        def parts(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            first = F.silu(self.stem(x))
            return first, first + self.block(first)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(self.parts(x)[1].mean((2, 3)))

    model = Stream().eval()
    assert_means(activity(model, IMAGES)["stem.weight"], *model.parts(IMAGES))


def test_what_changes_in_place_is_seen_as_it_is_read() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.out = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            x = self.a(x)
            F.relu(x, inplace=True)
            y = self.b(x)
            x += 100  # after b has read it
            return y, self.out(x.mean((2, 3)))

    model = InPlace().eval()
    first = F.relu(model.a(IMAGES))
    assert_means(activity(model, IMAGES)["a.weight"], first, first + 100)


def test_where_nothing_elementwise_lies_between_two_layers() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 2, 1)).eval()
    model[1].running_mean.copy_(torch.randn(6))
    assert_means(activity(model, IMAGES)["0.weight"], model[1](model[0](IMAGES)))


def test_flattened_and_concatenated_channels() -> None:
    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.out = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 5, 3), nn.Linear(9 * 36, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(torch.cat([F.gelu(self.a(x)), F.gelu(self.b(x))], 1).flatten(1))

    model = Joined().eval()
    scores = activity(model, IMAGES)
    assert_means(scores["a.weight"], F.gelu(model.a(IMAGES)))
    assert_means(scores["b.weight"], F.gelu(model.b(IMAGES)))


def test_untagged_nonlinearities_count_as_such() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.Hardswish(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2)
    )
    assert_means(activity(model.eval(), IMAGES)["0.weight"], F.hardswish(model[0](IMAGES)))


def test_features_of_attention_heads_and_whole_heads() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.value, self.other, self.out = nn.Linear(8, 6), nn.Linear(8, 12), nn.Linear(6, 2)

        def split(self, x: torch.Tensor) -> torch.Tensor:
            return x.reshape(x.shape[0], -1, 3, 2).transpose(1, 2).reshape(x.shape[0] * 3, -1, 2)

        def parts(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            query, key = self.other(x).chunk(2, dim=-1)
            weights = torch.bmm(self.split(query), self.split(key).transpose(1, 2)).softmax(-1)
            value = self.value(x)
            mixed = torch.bmm(weights, self.split(value))
            return value, mixed.reshape(x.shape[0], 3, -1, 2).transpose(1, 2).flatten(2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(self.parts(x)[1]).mean(1)

    model, inputs = Attention().eval(), torch.randn(5, 4, 8)
    scores = activity(model, inputs)["value.weight"]
    assert_means(scores, *[part.unflatten(-1, (3, 2)) for part in model.parts(inputs)], axis=-1)  # features, over all heads


def test_what_no_contraction_reads() -> None:
    """Only the network's output reads the channels: they are looked at in every value."""

    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Conv2d(3, 6, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.tanh(self.a(x)).mean(1)

    model = Pooled().eval()
    scores = activity(model, IMAGES)["a.weight"]
    assert_means(scores, model.a(IMAGES), torch.tanh(model.a(IMAGES)))
