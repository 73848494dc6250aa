"""A segment with raw data and its decoder as one module, whose last output is the error of the reconstruction (``[reconstruct]``)."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from export.load import load_seeded
from export.run_segment import RunSegment, spec_of
from wire.errors import GraphError
from wire.runfile import Run
from wire.segments import RECONSTRUCTION, ReconstructConfig

__all__ = ["SEGMENT", "Autoencoder", "with_decoder"]

SEGMENT = "segment"  # under which the segment's own names are in the state dict


class Autoencoder(nn.Module):
    """Outputs: those of ``segment``, then how far ``decoder`` of them is from the input: each sample's mean squared error, [N]."""

    def __init__(self, segment: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.segment = segment
        self.decoder = decoder

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        found = self.segment(x)
        outputs = (found,) if isinstance(found, Tensor) else tuple(found)
        return (*outputs, (self.decoder(*outputs) - x).square().flatten(1).mean(dim=1))


def with_decoder(run: Run, config: ReconstructConfig, segment: RunSegment) -> RunSegment:
    """The same segment with its decoder. Raises RunFileError; GraphError where the decoder does not give what the raw data was."""
    decoder = load_seeded(config.decoder, config.args, run.base, key="reconstruct.decoder", seed=f"{run.seed}/{segment.name}/decoder")
    module = Autoencoder(segment.module, decoder)
    _check(config, module, segment)
    with torch.no_grad():
        error = module.eval()(*segment.examples)[-1]
    spec = spec_of(RECONSTRUCTION, error)
    return dataclasses.replace(
        segment, module=module, outputs=(*segment.outputs, spec), output_names=(*segment.output_names, RECONSTRUCTION)
    )


def _check(config: ReconstructConfig, module: Autoencoder, segment: RunSegment) -> None:
    (example,) = segment.examples
    try:
        with torch.no_grad():
            found = module.eval().segment(example)
            made = module.decoder(*((found,) if isinstance(found, Tensor) else found))
    except (RuntimeError, TypeError, ValueError, IndexError) as exc:
        raise GraphError(f"reconstruct.decoder: `{config.decoder}` does not run on what `{segment.name}` gives: {str(exc)[:200]}") from exc
    if not isinstance(made, Tensor) or made.shape != example.shape:
        shape = list(made.shape[1:]) if isinstance(made, Tensor) else type(made).__name__
        raise GraphError(f"reconstruct.decoder: `{config.decoder}` makes a sample of {shape}, the raw data has {list(example.shape[1:])}")
