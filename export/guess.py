"""What a model takes, where nobody has said: found by its first layer, and by trying which usual sizes it runs on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from wire.errors import RunFileError

__all__ = ["example_of", "guessed_example"]

_SAMPLES = 2
_SMALL_IMAGES = (32, 28, 64, 96, 8, 16, 128, 224, 256, 12, 14, 20, 24, 40, 48, 112, 160, 192, 299, 384)
_LARGE_IMAGES = (224, 96, 128, 256, 64, 32, 112, 160, 192, 299, 384, 16, 28)  # for a stem of large strided kernels
_SIGNALS = (187, 128, 256, 1000, 100, 64, 512, 1024, 2048)
_STEPS = (16, 64, 10, 32, 128)


def guessed_example(model: nn.Module) -> tuple[Tensor, str]:
    """A batch of zeros that the model runs on, and a line that says what was assumed. Raises RunFileError where no usual shape fits."""
    fitting = (batch for batch in _candidates(model) if _runs(model, batch))
    first, second = next(fitting, None), next(fitting, None)
    if first is None:
        raise RunFileError("--input-shape is missing, and the model runs on no usual one: say the shape of one sample, like 1,28,28")
    other = "" if second is None else f" ({_shown(second)} would fit too)"
    return first, f"--input-shape {_shown(first)} assumed: it was not given, and the model runs on it{other}"


def example_of(model: nn.Module, shape: tuple[int, ...]) -> Tensor:
    """A batch of zeros of this shape; whole numbers where the first layer is an embedding."""
    first = next((module for module in model.modules() if isinstance(module, tuple(_BY_LAYER))), None)
    return torch.zeros(_SAMPLES, *shape, dtype=torch.int64 if isinstance(first, nn.Embedding) else torch.float32)


def _shown(batch: Tensor) -> str:
    return ",".join(str(size) for size in batch.shape[1:])


def _runs(model: nn.Module, batch: Tensor) -> bool:
    modes = {module: module.training for module in model.modules()}
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            model.eval()(batch)
    except Exception:  # noqa: BLE001 - a user's forward may fail in any way on what it was not made for
        return False
    finally:
        for module, mode in modes.items():
            module.training = mode
    return True


def _candidates(model: nn.Module) -> Iterator[Tensor]:
    for module in model.modules():
        for kind, shapes in _BY_LAYER.items():
            if isinstance(module, kind):
                for shape in shapes(module):
                    yield torch.zeros(_SAMPLES, *shape, dtype=torch.int64 if isinstance(module, nn.Embedding) else torch.float32)
                return


def _images(layer: Any) -> Iterator[tuple[int, ...]]:
    strided = max(layer.kernel_size) >= 4 and max(layer.stride) > 1
    # Where the first layer takes other channels than an image has, they may be made of it on the way.
    channels = dict.fromkeys((layer.in_channels, 3, 1))
    return ((count, size, size) for count in channels for size in (_LARGE_IMAGES if strided else _SMALL_IMAGES))


def _rows(width: int) -> Iterator[tuple[int, ...]]:
    yield (width,)
    yield from ((steps, width) for steps in _STEPS)


# The first layer of one of these kinds, in the order in which a model names its layers, is taken for the one that sees the input.
_BY_LAYER: Mapping[type[nn.Module], Callable[[Any], Iterator[tuple[int, ...]]]] = {
    nn.Conv2d: _images,
    nn.Conv1d: lambda layer: ((layer.in_channels, size) for size in _SIGNALS),
    nn.Conv3d: lambda layer: ((layer.in_channels, 16, size, size) for size in (32, 64, 112)),
    nn.Linear: lambda layer: _rows(layer.in_features),
    nn.BatchNorm1d: lambda layer: iter([(layer.num_features,)]),
    nn.LayerNorm: lambda layer: _rows(layer.normalized_shape[-1]),
    nn.RNNBase: lambda layer: ((steps, layer.input_size) for steps in _STEPS),
    nn.MultiheadAttention: lambda layer: ((steps, layer.embed_dim) for steps in _STEPS),
    nn.Embedding: lambda layer: ((steps,) for steps in _STEPS),
}
