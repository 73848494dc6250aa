"""The entropy coder of few-level symbols: bytes over the entropy of each channel, bytes against Zstandard, milliseconds of CPU.

Feature maps are real: those that a small network gives while it learns Fashion-MNIST through a quantizer of few levels.

    python -m benchmarks.entropy [ROUNDS]        writes docs/benchmarks/entropy.md and entropy.json
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.common import PAGES, hardware, spread, write_page
from edge_client.data import open_source
from simulation.datasets import materialize
from tests.wire.entropy_oracles import constriction_bytes, zstd_bytes
from wire.data_config import DataConfig
from wire.entropy import decode, decode_maps, encode, encode_maps
from wire.errors import RunFileError
from wire.parse import parse

Symbols = NDArray[np.uint8]

BAR_LARGE, BAR_SMALL, BAR_ZSTD, BAR_MS = 0.01, 0.03, 0.08, 3.5
ROUNDS = 40
BATCH = 64
STEPS = 500
SHARES = [[0.95, 0.04, 0.01], [0.9, 0.1], [0.8, 0.15, 0.05], [0.6, 0.3, 0.1], [0.5, 0.25, 0.15, 0.1], [0.25] * 4]


@dataclass(frozen=True, kw_only=True)
class Case:
    """A message, and how it is coded."""

    name: str
    symbols: Symbols  # group after group
    expected: Symbols  # what decoding gives
    counts: list[int]
    encode: Callable[[], bytes]
    decode: Callable[[bytes], Symbols]


def groups_case(name: str, symbols: Symbols, counts: list[int], alphabet: int) -> Case:
    coder = partial(encode, symbols, counts, alphabet), partial(decode, counts=counts, alphabet=alphabet)
    return Case(name=name, symbols=symbols, expected=symbols, counts=counts, encode=coder[0], decode=coder[1])


def maps_case(name: str, maps: Symbols, alphabet: int) -> Case:
    symbols = np.ascontiguousarray(maps.swapaxes(0, 1)).reshape(-1)
    counts = [symbols.size // maps.shape[1]] * maps.shape[1]
    coder = partial(encode_maps, maps, alphabet), partial(decode_maps, shape=maps.shape, alphabet=alphabet)
    return Case(name=name, symbols=symbols, expected=maps, counts=counts, encode=coder[0], decode=coder[1])


def entropy_bits(symbols: Symbols, counts: Sequence[int]) -> float:
    """The order-0 entropy of every group, as it is found in it, added up."""
    total = 0.0
    for group in np.split(symbols, np.cumsum(counts)[:-1]):
        found = np.bincount(group)
        total -= float((found[found > 0] * np.log2(found[found > 0] / group.size)).sum())
    return total


def learned_maps(levels: int, coarseness: float) -> Symbols:
    """[64, 16, 7, 7]: the cut of a small network after 500 steps with SGD; a level is ``coarseness`` root mean squares of its channel."""
    torch.manual_seed(0)
    torch.set_num_threads(1)

    def convolution(first: int, last: int) -> list[torch.nn.Module]:
        return [torch.nn.Conv2d(first, last, 3, padding=1), torch.nn.BatchNorm2d(last), torch.nn.ReLU(), torch.nn.MaxPool2d(2)]

    bottom = torch.nn.Sequential(*convolution(1, 16), *convolution(16, 16))
    top = torch.nn.Sequential(*convolution(16, 64), torch.nn.Flatten(), torch.nn.Linear(64 * 9, 10))
    optimizer = torch.optim.SGD([*bottom.parameters(), *top.parameters()], lr=0.05, momentum=0.9)
    for images, labels in batches():
        real = bottom(images)
        step = real.detach().square().mean((0, 2, 3), keepdim=True).sqrt() * coarseness + 1e-8
        symbols = (real.detach() / step + 0.35).floor().clamp(0, levels - 1)
        loss = torch.nn.functional.cross_entropy(top(real + (symbols * step - real).detach()), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return symbols.numpy().astype(np.uint8)


def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    with tempfile.TemporaryDirectory(prefix="cutlayer-entropy-") as folder:
        facts = materialize("fashion-mnist", Path(folder))
        config = parse(DataConfig, {**facts.data}, where="data", error=RunFileError)
        source = open_source(config, "train", seed=0, segment="bottom", lane=0, batch_size=BATCH)
        for number in range(STEPS):
            batch = source.batch(0, number)
            assert batch.target is not None
            yield torch.from_numpy(np.array(batch.inputs[0])), torch.from_numpy(np.array(batch.target)).long()


def cases() -> Iterator[Case]:
    rng = np.random.default_rng(0)
    for counts, label in [([2048], "2,048 symbols"), ([16_384], "16,384 symbols"), ([3136] * 16, "16 channels of 3,136")]:
        for shares in SHARES:
            symbols = rng.choice(len(shares), sum(counts), p=shares).astype(np.uint8)
            yield groups_case(f"{label}, drawn {'/'.join(f'{share:.2g}' for share in shares)}", symbols, counts, 4)
    for levels, coarseness in [(5, 1.0), (3, 1.5), (3, 2.0)]:
        maps = learned_maps(levels, coarseness)
        named = f"learned maps 64x16x7x7, {levels} levels at {coarseness:g} RMS"
        whole = maps_case(f"{named}, by neighbours", maps, levels)
        yield groups_case(f"{named}, by channel", whole.symbols, whole.counts, levels)
        yield whole


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one message came to; seconds of CPU, of every round."""

    case: Case
    size: int
    entropy_bits: float
    constriction: int
    zstd: int | None
    encode_s: list[float]
    decode_s: list[float]

    def facts(self) -> dict[str, object]:
        return {
            "name": self.case.name,
            "symbols": self.case.symbols.size,
            "entropy_bits_a_symbol": self.entropy_bits / self.case.symbols.size,
            "bytes": self.size,
            "over_entropy": 8 * self.size / self.entropy_bits - 1,
            "constriction_bytes": self.constriction,
            "over_zstd": self.size / self.zstd - 1 if self.zstd else None,
            "encode_ms": [1e3 * value for value in statistics.quantiles(self.encode_s, n=4)],
            "decode_ms": [1e3 * value for value in statistics.quantiles(self.decode_s, n=4)],
        }

    def line(self) -> str:
        columns = [
            self.case.name,
            f"{self.entropy_bits / self.case.symbols.size:.3f}",
            str(self.size),
            f"{8 * self.size / self.entropy_bits - 1:+.2%}",
            str(self.constriction),
            f"{self.size / self.zstd - 1:+.1%}" if self.zstd else "",
            spread(self.encode_s),
            spread(self.decode_s),
            spread([first + last for first, last in zip(self.encode_s, self.decode_s, strict=True)]),
        ]
        return "| " + " | ".join(columns) + " |"


def measure(case: Case, rounds: int) -> Row:
    data = case.encode()
    if not np.array_equal(case.decode(data), case.expected):
        raise SystemExit(f"{case.name}: what comes back is not what went in")
    encode_s, decode_s = [], []
    for _ in range(rounds):
        times = [time.process_time()]
        case.encode()
        times.append(time.process_time())
        case.decode(data)
        times.append(time.process_time())
        encode_s.append(times[1] - times[0])
        decode_s.append(times[2] - times[1])
    return Row(
        case=case,
        size=len(data),
        entropy_bits=entropy_bits(case.symbols, case.counts),
        constriction=constriction_bytes(case.symbols, case.counts),
        zstd=zstd_bytes(case.symbols) if case.symbols.max() < 4 else None,
        encode_s=encode_s,
        decode_s=decode_s,
    )


def main(rounds: int = ROUNDS) -> None:
    rows = [measure(case, rounds) for case in cases()]
    facts = json.dumps([row.facts() for row in rows], indent=1) + "\n"
    (PAGES / "entropy.json").write_text(facts)
    print(facts)
    write_page(
        "entropy",
        [
            "# The entropy coder",
            "",
            "Whole messages, tables and all, against the order-0 entropy of each channel as it is found in the message; against the rANS "
            "of constriction, whose decoder is told those distributions for nothing; and against Zstandard at level 19 with a symbol or "
            "four a byte, whichever is smaller. Milliseconds of CPU time of one thread, median and quartiles.",
            "",
            *hardware("numpy", "torch", "constriction", "zstandard"),
            f"- script: `make bench-entropy`, {rounds} rounds; bars: at most {BAR_LARGE:.0%} over the entropy from 16,384 symbols on, "
            f"{BAR_SMALL:.0%} at 2,048; {BAR_ZSTD:.0%} below Zstandard at 2,048 symbols of 2 bits at most; by channel {BAR_MS} ms to "
            "encode and decode 64x784",
            "",
            "| message | entropy, bits a symbol | bytes | over it | constriction | to zstd-19 | encode | decode | both |",
            "|---|---|---|---|---|---|---|---|---|",
            *(row.line() for row in rows),
        ],
    )


if __name__ == "__main__":
    main(*(int(word) for word in sys.argv[1:]))
