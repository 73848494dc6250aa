"""What cannot be exported, and what to use instead: one sentence an operation, looked up when an operation has no ONNX form."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from wire.errors import ExportError

__all__ = ["INSTEAD", "check_modules", "instead", "untraceable"]

_VALUES = "what it computes depends on values; use torch.where, or multiply by a mask"
_COMPLEX = "complex numbers do not run on a device; compute them before the segment, as data, or use a Conv1d with the wanted filters"
_MATRICES = "matrix decompositions do not run on a device; move it behind the cut"
_RANKS = "use topk, amax or mean"

# By ATen's name without overload, or the beginning of it.
INSTEAD: dict[str, str] = {
    "max_unpool": "use Upsample or ConvTranspose2d",
    "grid_sampler": "it samples at computed places; use Upsample, or move it behind the cut",
    "affine_grid": "it samples at computed places; use Upsample, or move it behind the cut",
    "_fft": _COMPLEX,
    "view_as_complex": _COMPLEX,
    "view_as_real": _COMPLEX,
    "complex": _COMPLEX,
    "polar": _COMPLEX,
    "stft": _COMPLEX,
    "_local_scalar_dense": "a tensor is turned into a number (`.item()`, `float()`, an index or size that is computed); keep it a tensor",
    "nonzero": _VALUES,
    "masked_select": _VALUES,
    "masked_scatter": _VALUES,
    "_unique": _VALUES,
    "unique": _VALUES,
    "bincount": _VALUES,
    "histc": _VALUES,
    "searchsorted": _VALUES,
    "bucketize": _VALUES,
    "median": _RANKS,
    "nanmedian": _RANKS,
    "kthvalue": _RANKS,
    "mode": _RANKS,
    "prod": "use exp of the sum of logarithms, or multiply the parts",
    "cumprod": "use exp of the cumsum of logarithms",
    "cummax": "use amax or MaxPool1d",
    "cummin": "use amin or MaxPool1d",
    "_linalg": _MATRICES,
    "linalg": _MATRICES,
    "cholesky": _MATRICES,
    "triangular_solve": _MATRICES,
    "_embedding_bag": "use Embedding, then a sum or mean over dimension 1",
    "embedding_renorm": "leave max_norm of the Embedding at None",
    "_sparse": "leave sparse of the Embedding at False",
    "_cdist": "use torch.cdist with p=2, or the norm of a difference",
    "_ctc_loss": "compute this loss on the server, behind the cut",
    "fake_quantize": "a device trains in float32; quantise the trained model instead",
    "quantize_per": "a device trains in float32; quantise the trained model instead",
    "lgamma": "move it behind the cut",
    "as_strided": "use slices, view and permute",
}
_OTHERWISE = "replace it, or move it behind the cut"

_FUNCTION = "it has an autograd.Function of its own; write its gradient with detach, like `x + (f(x) - x).detach()`"

# By what PyTorch says where it cannot trace.
_UNTRACEABLE = {
    "data-dependent": "its forward depends on values (a branch on a tensor, `.item()`, BatchNorm with momentum=None); write it without",
    "autograd.Function": _FUNCTION,
    "custom_function_call": _FUNCTION,
    "saved tensor hooks": "torch.utils.checkpoint does not go with it; call the function itself",
    "data pointer": "a tensor is taken out to numpy; stay with torch",
    "tolist": "a tensor is turned into a list; stay with tensors",
    "aten._ctc_loss": "it holds the CTC loss; compute this loss on the server",
}


# Layers that draw random numbers in a way of their own.
_LAYERS: dict[type[nn.Module], str] = {
    nn.RReLU: "use LeakyReLU or PReLU",
    nn.FractionalMaxPool2d: "use MaxPool2d or AdaptiveMaxPool2d",
    nn.FractionalMaxPool3d: "use MaxPool3d or AdaptiveMaxPool3d",
}


def instead(kind: str) -> str:
    """What to do about an operation that has no ONNX form; ``kind`` is ATen's name without overload."""
    return next((text for name, text in INSTEAD.items() if kind.startswith(name)), _OTHERWISE)


def untraceable(reason: str) -> str:
    """Why a segment cannot be traced and what to do, from PyTorch's own words."""
    return next((text for name, text in _UNTRACEABLE.items() if name in reason), f"{reason}; write it without")


def check_modules(module: nn.Module) -> None:
    """Raises ExportError for a submodule that no operation of a trace tells apart, or that cannot be copied or called on other weights."""
    for name, each in module.named_modules():
        where = f"module `{name}`" if name else "the segment"
        if type(each) in _LAYERS:
            raise ExportError(f"{where} is a {type(each).__name__}, which a device cannot train; {_LAYERS[type(each)]}")
        if isinstance(each, torch.jit.ScriptModule):
            raise ExportError(f"{where} is TorchScript, which cannot be taken apart; use the torch.nn.Module that it was made from")
        if type(each).__name__ == "_SpectralNorm":
            raise ExportError(f"{where} is a spectral_norm, whose iteration goes on between steps; use weight_norm of the same package")
        for hook in each._forward_pre_hooks.values():
            if isinstance(hook, (WeightNorm, SpectralNorm)):
                raise ExportError(
                    f"{where} has torch.nn.utils.{'weight' if isinstance(hook, WeightNorm) else 'spectral'}_norm on it, which PyTorch has "
                    "given up; use torch.nn.utils.parametrizations.weight_norm"
                )
