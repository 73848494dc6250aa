"""The encoder's choice of the weights of ``wire.entropy.neighbours``: least squares, rounded.

What it chooses is sent, so it may differ from one machine to another.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from wire.entropy.neighbours import (
    BESIDE_MOST,
    BESIDE_ONE,
    BIAS_MOST,
    COEFFICIENT_BITS,
    COEFFICIENT_ONE,
    CROSS_MOST,
    CROSS_ONE,
    ONE,
    Geometry,
    Part,
    Predictor,
)

__all__ = ["fit"]

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]

_FIT_SYMBOLS = 1000  # of a stage or a channel, that few coefficients are fitted to


def fit(geometry: Geometry, known: Floats) -> tuple[Predictor, list[Floats]]:
    """(predictor, the features of each stage) of maps that are known altogether."""
    count = known[0].size
    flat = known.reshape(len(known), -1)
    mean = flat.sum(axis=1, dtype=np.float64) / count
    crosses, biases = [], []
    for channels, references in zip(geometry.blocks, geometry.references, strict=True):
        crosses.append(_fit_cross(flat, mean, channels, references))
        shift = np.rint(ONE * (mean[channels] - crosses[-1] @ mean[references] / CROSS_ONE))
        biases.append(np.clip(shift, -BIAS_MOST, BIAS_MOST).astype(np.int64))
    parts: list[Part] = []
    for batch in geometry.parts:
        own = np.ascontiguousarray(known[..., batch]).reshape(len(known), -1, batch.stop - batch.start)
        parts.append(Part(geometry, own, parts[-1] if parts else None))
        for block, (cross, bias) in enumerate(zip(crosses, biases, strict=True)):
            parts[-1].predict(block, cross, bias)
    beside = _fit_beside(geometry, parts[-1])
    features, targets = [], []
    for number, block, phase in geometry.stages():
        channels = geometry.blocks[block]
        features.append(parts[number].features(block, phase, beside[channels]))
        targets.append(parts[number].known[channels, geometry.phases[phase]].reshape(-1))
    coefficients = []
    for kind in geometry.kinds:
        chosen = [number for number, (index, _, phase) in enumerate(geometry.stages()) if (index, phase) == kind]
        coefficients.append(_fit_stages([features[number] for number in chosen], [targets[number] for number in chosen]))
    return Predictor(cross=crosses, bias=np.concatenate(biases), beside=beside, coefficients=coefficients), features


def _fit_beside(geometry: Geometry, part: Part) -> Ints:
    """[channels, 2], for Predictor, where all is known and predicted."""
    if len(geometry.phases) == 1:
        return np.zeros((len(part.known), 2), np.int64)
    places = geometry.phases[1]
    some = slice(None, None, max(1, len(places) * part.known.shape[2] // _FIT_SYMBOLS))
    known, scores = part.known[:, :, some], part.scores[:, places, some]
    around = np.zeros((2, *known.shape), np.float32)
    part.add_vertical(known, around[0])
    part.add_horizontal(known, around[1])
    around = around[:, :, places] * np.float32(ONE)
    columns = [np.full_like(scores, ONE), scores, *around, known[:, places] * np.float32(ONE)]
    rows = np.stack([column.reshape(len(column), -1) for column in columns], axis=1)
    gram = (rows @ rows.transpose(0, 2, 1)).astype(np.float64)
    weights = np.linalg.solve(gram[:, :4, :4] + (1e-3 * gram[:, :1, :1] + 1) * np.eye(4), gram[:, :4, 4:])[:, 2:, 0]
    rounded: Ints = np.clip(np.rint(BESIDE_ONE * weights), -BESIDE_MOST, BESIDE_MOST).astype(np.int64)
    return rounded


def _fit_cross(flat: Floats, mean: NDArray[np.float64], block: slice, references: slice) -> Ints:
    """[channels, references]; a weight that might as well be 0 is."""
    count = flat.shape[1]
    if references.start == references.stop:
        return np.zeros((block.stop - block.start, 0), np.int64)
    left = flat[references]
    own = (left @ left.T).astype(np.float64) / count - np.outer(mean[references], mean[references])
    inverse = np.linalg.inv(own + 1e-3 * np.eye(len(own)))
    right = (left @ flat[block].T).astype(np.float64) / count - np.outer(mean[references], mean[block])
    weights = inverse @ right
    power = np.einsum("ij,ij->i", flat[block], flat[block]) / count - mean[block] ** 2
    error = np.maximum(power - (weights * right).sum(axis=0), 1e-9)
    weights[weights**2 * count < 9 * np.diag(inverse)[:, None] * error] = 0
    rounded: Ints = np.clip(np.rint(CROSS_ONE * weights.T), -CROSS_MOST, CROSS_MOST).astype(np.int64)
    return rounded


def _fit_stages(features: list[Floats], targets: list[Floats]) -> list[int]:
    """The coefficients of stages of a kind, from some symbols of each."""
    thinned = [slice(0, None, max(1, len(target) // _FIT_SYMBOLS)) for target in targets]
    some = np.concatenate([one[:, thin] for one, thin in zip(features, thinned, strict=True)], axis=1)
    target = np.concatenate([one[thin] for one, thin in zip(targets, thinned, strict=True)])
    gram, right = (some @ some.T).astype(np.float64), (some @ target).astype(np.float64)
    gram += 1e-6 * np.diag(np.diag(gram) + 1)
    weights = np.rint(np.linalg.solve(gram, right) * ONE * COEFFICIENT_ONE)
    most = (1 << COEFFICIENT_BITS >> 1) - 1
    constant = int(np.clip(weights[0], -4 * most, 4 * most))
    return [constant, *np.clip(weights[1:], -most, most).astype(int).tolist()]
