"""A slimmable network in which each sample gets the width it needs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.functional import cross_entropy, one_hot

from featherweight.dynamic.effort import EffortNetwork, Spent
from featherweight.dynamic.gates import image_policy, start_at
from featherweight.dynamic.widths import SlimmableNetwork
from featherweight.errors import RequestError, check
from featherweight.graph.capture import to_module
from featherweight.graph.constraint import duplicate
from featherweight.graph.cost import count_macs
from featherweight.graph.program import Program
from featherweight.training.loaders import Loader
from featherweight.training.loop import Tuning, fit
from featherweight.training.mode import device_of, in_mode
from featherweight.training.progress import Progress, silent

__all__ = ["RoutedNetwork", "add_router", "tune_router"]


class Routes(NamedTuple):
    """What a routed network gives in train mode.

    Attributes:
        answers: (widths, B, classes), of every width, without gradients.
        chances: (B, widths), the router's probabilities.
        shares: (widths,), what each width costs, of the full network's MACs.
    """

    answers: torch.Tensor
    chances: torch.Tensor
    shares: torch.Tensor


class RoutedNetwork(EffortNetwork):
    """A slimmable network whose width is chosen for each sample by a router that looks at the input: see `add_router`.

    In eval mode a sample runs at the width w whose logit minus `price` · MACs of w, as a share of the full network's, is
    largest. Samples of the same width go together, and what is cut away is not computed. A price of -∞ runs the full width,
    and does not ask the router.

    In train mode it gives `Routes`, all widths' answers, see `tune_router`.

    Args:
        slimmable: its choices now are the widths there are; shared, not copied.
        router: a module that makes logits (B, widths) of the network's first input, from the lightest width to the full one.

    Raises:
        RequestError: there is one width only, or the router's logits are not as many.
        CaptureError: the router cannot be captured.
    """

    def __init__(self, slimmable: SlimmableNetwork, router: nn.Module) -> None:
        widths = slimmable.choices()
        check("the widths of a network with a router", widths, "two or more", len(widths) > 1)
        macs = [int(slimmable.cost(width).macs) for width in widths]
        super().__init__(macs[-1])
        self.widths = widths
        example = slimmable.full.program.example()[:1]
        made = to_module(router, tuple(x.to(device_of(router)) for x in example))
        own = count_macs(made.program, made.state_dict())
        with torch.no_grad():
            form = tuple(made(*(x.to(device_of(made)) for x in example)).shape)
        check("the logits of a router", form, f"(2, {len(self.widths)}) for a batch of 2", form == (2, len(self.widths)))
        self.slimmable = slimmable
        self.router = made
        self.width_macs = tuple(own + count for count in macs)
        self._shares = [count / macs[-1] for count in macs]
        self.train(slimmable.training)

    @property
    def program(self) -> Program:
        """Of the full network, without its router."""
        return self.slimmable.full.program

    def explore(self, *inputs: Any) -> Routes:
        """What train mode gives: all widths' answers, and the router's say."""
        with in_mode(self.slimmable, training=False), torch.no_grad():
            answers = torch.stack([self.slimmable.at_width(width)(*inputs) for width in self.widths])
        return Routes(answers, self.router(inputs[0]).softmax(1), answers.new_tensor(self._shares))

    def spend(self, price: float, *inputs: torch.Tensor) -> Spent:
        """The answers at a price, the MACs of each sample, and which width it had, one of those in `taken`."""
        if self.training:
            with in_mode(self, training=False):
                return self.spend(price, *inputs)
        count = len(self.widths)
        if price == -math.inf:
            routes = torch.full((len(inputs[0]),), count - 1, device=inputs[0].device)
            macs = inputs[0].new_tensor([0.0] * (count - 1) + [self.cost(-math.inf).macs], dtype=torch.float64)
        else:
            logits = self.router(inputs[0])
            routes = (logits - price * logits.new_tensor(self._shares)).argmax(1)
            macs = logits.new_tensor(self.width_macs, dtype=torch.float64)
        taken = one_hot(routes, count).bool()
        return Spent(self._answers(routes.tolist(), inputs), macs[routes], taken)

    def worth(self, *inputs: torch.Tensor) -> torch.Tensor:
        """The prices from which on each lighter width is better for a sample than the full one: (B, widths - 1)."""
        logits = self.router(inputs[0])
        saved = self._shares[-1] - logits.new_tensor(self._shares[:-1])
        return (logits[:, -1:] - logits[:, :-1]) / saved  # type: ignore[no-any-return]

    def _answers(self, routes: Sequence[int], inputs: Sequence[torch.Tensor]) -> torch.Tensor:
        used = sorted(set(routes))
        if len(used) == 1:
            answer: torch.Tensor = self.slimmable.at_width(self.widths[used[0]])(*inputs)
            return answer
        parts, order = [], []
        for number in used:
            rows = [row for row, route in enumerate(routes) if route == number]
            parts.append(self.slimmable.at_width(self.widths[number])(*(x[rows] for x in inputs)))
            order += rows
        whole = torch.cat(parts)
        return torch.empty_like(whole).index_copy_(0, torch.tensor(order, device=whole.device), whole)


def add_router(slimmable: SlimmableNetwork, *, router: nn.Module | None = None, seed: int = 0) -> RoutedNetwork:
    """A network whose width is chosen for each sample, from a slimmable one, which it shares.

    Runtime Neural Pruning (Lin, Rao, Lu and Zhou, NeurIPS 2017): of each layer's channel groups the first ones run, as many as
    a sample needs. They decide layer by layer, with a recurrent network and Q-learning; here a router decides once for all
    layers, so that samples of the same width can run together, and it learns from the exact mean over all its decisions
    (`tune_router`), which are few.

    Args:
        slimmable: with two widths or more, trained.
        router: see `RoutedNetwork`; it is copied, and its last linear layer set to 0, so that it prefers no width at first. By
            default an `image_policy`.
        seed: of the weights of the default router.

    Returns:
        The network, in the slimmable one's mode; its router has yet to be trained.

    Raises:
        RequestError: there is one width only, or a router is needed since the input is no image.

    Example:
        >>> from featherweight.dynamic import make_slimmable
        >>> from featherweight.nets import lenet5
        >>> net = add_router(make_slimmable(lenet5(), torch.zeros(1, 1, 28, 28), widths=(0.5,))).eval()
        >>> net(torch.zeros(5, 1, 28, 28)).shape, net.widths
        (torch.Size([5, 10]), (0.5, 1.0))
    """
    if router is None:
        shape = slimmable.full.program.inputs[0].shape
        if len(shape) != 4 or shape[1] is None:
            raise RequestError(f"a default router looks at an image (B, channels, rows, columns), got {shape}: pass router=")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            router = image_policy(shape[1], len(slimmable.choices())).to(device_of(slimmable))
    return RoutedNetwork(slimmable, start_at(duplicate(router), 0.0))


def tune_router(
    net: RoutedNetwork,
    loader: Loader,
    tuning: Tuning,
    *,
    cost: float = 0.1,
    seed: int = 0,
    progress: Progress = silent,
) -> None:
    """Trains the router IN PLACE; the slimmable network stays as it is.

    The loss is the mean over the router's decisions of what they bring: Σ p(w) · (cross-entropy at w + cost · MACs of w as a
    share of the full network's), which needs no draws.

    Args:
        net: with a router.
        loader: batches of (inputs, targets (B,)).
        tuning: as for `fit`.
        cost: what all of the network's MACs weigh beside the loss, at least 0.
        seed: as for `fit`.
        progress: as for `fit`.

    Raises:
        RequestError: the cost is below 0.
        TrainingError, DataError: as `fit` says.

    Example:
        >>> from featherweight.dynamic import make_slimmable
        >>> layers = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> net = add_router(make_slimmable(layers, torch.zeros(1, 4), widths=(0.5,)), router=nn.Linear(4, 2)).eval()
        >>> data = [(torch.randn(64, 4), torch.zeros(64, dtype=torch.int64))]
        >>> tune_router(net, data, Tuning(epochs=50, learning_rate=0.1), cost=9.0)
        >>> net.spend(0.0, data[0][0]).taken.double().mean(0).tolist()
        [1.0, 0.0]
    """
    check("cost", cost, "at least 0", cost >= 0)

    def loss(routes: Routes, targets: torch.Tensor) -> torch.Tensor:
        losses = torch.stack([cross_entropy(answer, targets, reduction="none") for answer in routes.answers], 1)
        return (routes.chances * (losses + cost * routes.shares)).sum(1).mean()

    fit(net, loader, tuning, loss=loss, seed=seed, progress=progress)  # type: ignore[arg-type]
