"""What a dynamic network does of itself: which images leave it early, and how it follows a budget that changes."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import torch

from featherweight.dynamic import Controller, Cost, Limit, calibrate, record_exits
from featherweight.experiments.dynamic_clock import mean_seconds, one_thread
from featherweight.experiments.dynamic_networks import data_of, network
from featherweight.experiments.experiment import Cell, Lab

__all__ = ["first_and_last", "follow_wave", "hexadecimal"]

_ROOM = 1.5  # of a limit over the time of the exit it is meant for
_PERIOD = 80  # images
_TRIALS = 50  # images, by which the costs are found


def first_and_last(cell: Cell, lab: Lab) -> dict[str, Any]:
    """Test images that leave at the first exit, and such that go to the end: of each class the first that does.

    Thresholds are those of best accuracy on validation data.

    Args:
        cell: its "sorted" is a network with exits.
        lab: where it is.

    Returns:
        "first" and "last": for each class an image's bytes in hexadecimal digits, "" if there is none; the "shares" of the test
        images that leave at each exit, and their "accuracy" in %, None where none leaves.
    """
    data, net = data_of(cell, lab), network(cell["sorted"], cell, lab)
    net.thresholds = calibrate(record_exits(net, data.validation), limit=Limit()).thresholds
    record = record_exits(net, data.test)
    limits = torch.tensor(net.thresholds)[:, None]
    left = torch.cat([record.confidences >= limits, torch.ones(1, record.right.shape[1], dtype=torch.bool)])
    exits = left.int().argmax(0)
    images, targets = (torch.cat(parts) for parts in zip(*data.test, strict=True))
    found: dict[str, Any] = {"shares": [], "accuracy": []}
    for number in net.choices():
        here = exits == number
        found["shares"].append(here.double().mean().item())
        found["accuracy"].append(100 * record.right[number, here].double().mean().item() if here.any() else None)
    for name, number in (("first", 0), ("last", len(net.choices()) - 1)):
        rows = [((exits == number) & (targets == label)).nonzero().flatten()[:1] for label in range(10)]
        found[name] = ["".join(hexadecimal(images[row]) for row in one) for one in rows]
    return found


def follow_wave(cell: Cell, lab: Lab) -> dict[str, Any]:
    """Test images one by one, in PyTorch, under a budget that jumps between what the first and what the last exit takes.

    Args:
        cell: its "steered" is a network with exits; "images" how many are run.
        lab: where it is.

    Returns:
        For each image the "limit" and the time in milliseconds, the exit, and whether the answer is "right", 0 or 1.
    """
    data, net = data_of(cell, lab), network(cell["steered"], cell, lab)
    images, targets = (torch.cat(parts)[: cell["images"]] for parts in zip(*data.test, strict=True))
    found: dict[str, Any] = {"limit": [], "milliseconds": [], "exit": [], "right": []}
    with one_thread(), torch.no_grad():
        measured = mean_seconds({choice: partial(net.answer_at, choice) for choice in net.choices()}, images[:_TRIALS], 1)
        controller = Controller({choice: Cost(net.cost(choice).macs, seconds) for choice, seconds in measured.items()})
        low, high = (_ROOM * measured[choice] for choice in (net.choices()[0], net.choices()[-1]))
        situation = controller.start(Limit(seconds=high))
        for number, (image, target) in enumerate(zip(images, targets, strict=True)):
            limit = high if number // (_PERIOD // 2) % 2 == 0 else low
            situation = controller.follow(situation, Limit(seconds=limit), _last(found))
            start = time.process_time()
            answer = net.answer_at(situation.choice, image[None])
            seconds = time.process_time() - start
            found["limit"].append(round(1e3 * limit, 4))
            found["milliseconds"].append(round(1e3 * seconds, 4))
            found["exit"].append(situation.choice)
            found["right"].append(int(answer.argmax() == target))
    return found


def _last(found: dict[str, Any]) -> float | None:
    return found["milliseconds"][-1] / 1e3 if found["milliseconds"] else None


def hexadecimal(image: torch.Tensor) -> str:
    """An image's pixels as bytes, the darkest 0 and the brightest 255, in hexadecimal digits.

    Example:
        >>> hexadecimal(torch.tensor([[0.0, 1.0]]))
        '00ff'
    """
    low, high = image.min(), image.max()
    return bytes(((image - low) / (high - low) * 255).round().to(torch.uint8).flatten().tolist()).hex()
