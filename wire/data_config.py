"""The ``[data]`` table of a run file: where a party's samples lie, which are its share, and how they become numbers.

    [data]
    kind = "npz"
    path = "digits.npz"
    images = "x_train"
    labels = "y_train"
    normalize = {mean = [0.5], std = [0.25]}
    augment = {flip = true, crop_padding = 2}
    shard = "1/2"

    [data.test]                 # keys that differ from the training split
    images = "x_test"
    labels = "y_test"

It is in ``wire`` because the parties of a run and its unsplit twin must make the same numbers of the same file.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Literal

__all__ = ["Augment", "DataConfig", "DataSplit", "Normalize", "Split"]

Split = Literal["train", "validation", "test"]

_SHARD = re.compile(r"([0-9]{1,6})/([0-9]{1,6})")
_PARTITION = re.compile(r"dirichlet:([0-9]{1,6}(?:\.[0-9]{1,6})?)")

# Keys that mean something for some kinds only; a key that nothing reads is refused.
_KINDS_OF = {
    "images": ("idx", "npz"),
    "id_column": ("csv", "npz", "folder"),
    "features": ("csv",),
    "classes": ("folder", "csv"),
    "image_size": ("folder",),
    "channels": ("folder",),
    "layout": ("npz", "csv"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Normalize:
    """``(value - mean) / std``, after ``scale``; one number for all, or one for each channel (images, signals) or column (tables)."""

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        if not self.mean or len(self.mean) != len(self.std):
            raise ValueError(f"`mean` has {len(self.mean)} numbers and `std` {len(self.std)}; give one a channel or column, or one for all")
        if not all(math.isfinite(value) for value in self.mean):
            raise ValueError("`mean` must be finite numbers")
        if not all(math.isfinite(value) and value > 0 for value in self.std):
            raise ValueError("`std` must be finite numbers above 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Augment:
    """Random changes of training samples, drawn anew each epoch.

    ``flip``: mirror left to right, one in two. ``crop_padding``: pad by so many zero pixels a side and cut the old size out at random.
    ``noise``: standard deviation of Gaussian noise, added after normalisation.
    """

    flip: bool = False
    crop_padding: int = 0
    noise: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.crop_padding <= 1024:
            raise ValueError(f"`crop_padding` is {self.crop_padding}; it must be 0 to 1024 pixels")
        if not (math.isfinite(self.noise) and self.noise >= 0):
            raise ValueError(f"`noise` is {self.noise}; it must be a finite number, 0 or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSplit:
    """Where one split lies. As ``[data.test]`` or ``[data.validation]``: a key that is left out is as in ``[data]``."""

    path: str | None = None
    images: str | None = None
    labels: str | None = None
    id_column: str | None = None
    shard: str | None = None
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.path == "":
            raise ValueError("`path` is empty")
        if self.shard is not None:
            _parse_shard(self.shard)
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"`limit` is {self.limit}; it must be 1 or more")

    @property
    def part(self) -> tuple[int, int]:
        """(which share, counted from 0; of how many)."""
        return _parse_shard(self.shard or "1/1")


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """One party's data.

    ===========  ======================================================================================================
    ``kind``     what ``path`` is
    ===========  ======================================================================================================
    idx          folder of IDX files (MNIST, Fashion-MNIST, EMNIST), gzipped or not; the usual names are found,
                 ``images`` and ``labels`` name others
    npz          NPZ file; ``images`` and ``labels`` name arrays; left out: MedMNIST's (train_images …) or Keras's (x_train …)
    cifar10      folder of the binary version (data_batch_1.bin …, test_batch.bin)
    cifar100     folder of the binary version (train.bin, test.bin); ``labels``: "fine" (default) or "coarse"
    folder       a folder of images for each class; all become ``image_size`` [height, width], ``channels`` 3 (RGB) or 1
    csv          CSV (.tsv: tabs) with a header; ``labels`` is the label column; ``features`` the columns to read, in this order
                 (left out: all but ``labels`` and ``id_column``); numbers only, no cell empty
    ===========  ======================================================================================================

    ``target``: "class" (int64 [N]), "number" (float32 [N], or [N, K] of an NPZ array) or "none", where another party holds the labels.
    ``classes``: names in the order of their numbers; needed where labels are text; for folders the sorted folder names by default. Give
    it when a party may lack a class.
    ``layout`` says how an array lies: "NF" rows, "NCL" signals ([N, L] gets one channel), "NHW", "NHWC", "NCHW"; left out: by its shape.

    ``id_column``: where sample ids come from; left out, the file and the row. Of a csv it is a column, of an NPZ file an array of text or
    whole numbers, of a folder "name": the file's own, without folder and suffix. Records are aligned by these ids.

    ``scale``: values are divided by it; default 255 for 8-bit images, 1 for the rest. Then ``normalize``, then ``augment`` (training only).

    The share: first ``validation_fraction`` of the training samples is held out (drawn by the run's seed, the same for all shards), unless
    there is a ``validation`` split. Then ``shard = "2/3"`` keeps every third sample, beginning with the second. Then ``limit`` keeps that
    many, evenly spread. ``partition = "dirichlet:0.3"`` shares the training samples out by label in place of every third: of each class a
    client's part is drawn from a Dirichlet distribution of this concentration (the lower, the more uneven) by the run's seed, so ``shard``
    then says which client this is of how many. Every sample is one client's, and no client has none; all must have the same files.

    ``unlabelled``: the class -1 stands for a training sample without a label, of which an autoencoder makes use (``[reconstruct]``).
    ``drop_last``: leave a last partial training batch out. ``id_prefix`` goes before all sample ids of this party: give it where several
    parties hold different files of the same name.
    """

    kind: Literal["idx", "npz", "cifar10", "cifar100", "folder", "csv"]
    path: str
    images: str | None = None
    labels: str | None = None
    target: Literal["class", "number", "none"] = "class"
    id_column: str | None = None
    features: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    image_size: tuple[int, int] | None = None
    channels: Literal[1, 3] | None = None
    layout: Literal["NF", "NCL", "NHW", "NHWC", "NCHW"] | None = None
    scale: float | None = None
    normalize: Normalize = field(default_factory=Normalize)
    augment: Augment = field(default_factory=Augment)
    shard: str = "1/1"
    partition: str | None = None
    limit: int | None = None
    validation_fraction: float = 0.0
    drop_last: bool = False
    unlabelled: bool = False
    id_prefix: str = ""
    validation: DataSplit = field(default_factory=DataSplit)
    test: DataSplit = field(default_factory=DataSplit)

    def __post_init__(self) -> None:
        for key, kinds in _KINDS_OF.items():
            if getattr(self, key) and self.kind not in kinds:
                raise ValueError(f"`{key}` means nothing for kind {self.kind!r}; it belongs to {', '.join(kinds)}")
        DataSplit(path=self.path, shard=self.shard, limit=self.limit)
        if self.concentration is not None and self.target != "class":
            raise ValueError(f"`partition` shares samples out by class, but `target` is {self.target!r}; leave one out")
        self._check_labels()
        self._check_values()
        self._check_splits()

    def _check_labels(self) -> None:
        if self.kind == "csv" and self.target != "none" and not self.labels:
            raise ValueError('`labels` must name the label column of a csv (or set `target = "none"`)')
        if self.kind == "cifar100" and self.labels not in (None, "fine", "coarse"):
            raise ValueError(f"`labels` is {self.labels!r}; for cifar100 it must be 'fine' or 'coarse'")
        if self.kind in ("cifar10", "folder") and self.labels:
            raise ValueError(f"`labels` means nothing for kind {self.kind!r}; its labels are where the images are")
        if self.kind in ("cifar10", "cifar100", "folder") and self.target == "number":
            raise ValueError(f"`target` is 'number', but the labels of kind {self.kind!r} are classes")
        for key, names in (("classes", self.classes), ("features", self.features)):
            if len(set(names)) != len(names):
                raise ValueError(f"`{key}` names {next(n for n in names if names.count(n) > 1)!r} twice")
        if self.labels in self.features or (self.id_column and self.id_column in (*self.features, self.labels)):
            raise ValueError("a column is in two of `features`, `labels`, `id_column`; the network would see its answer")
        if self.kind == "folder" and self.id_column not in (None, "name"):
            raise ValueError(f"`id_column` is {self.id_column!r}; for folder it must be 'name', the name of the file")

    def _check_values(self) -> None:
        if self.scale is not None and not (math.isfinite(self.scale) and self.scale > 0):
            raise ValueError(f"`scale` is {self.scale}; it must be a finite number above 0")
        if self.image_size is not None and not all(1 <= side <= 16384 for side in self.image_size):
            raise ValueError(f"`image_size` is {list(self.image_size)}; it must be [height, width], 1 to 16384 each")
        if not 0 <= self.validation_fraction < 1:
            raise ValueError(f"`validation_fraction` is {self.validation_fraction}; it must lie in [0, 1)")
        if self.layout and self.kind == "csv" and self.layout not in ("NF", "NCL"):
            raise ValueError(f"`layout` is {self.layout!r}; for csv it must be 'NF' or 'NCL'")

    def _check_splits(self) -> None:
        if self.has_own("validation") and self.validation_fraction:
            raise ValueError("`validation_fraction` and `validation` are two ways to say the same; leave one out")
        for name, own in (("validation", self.validation), ("test", self.test)):
            if own == DataSplit():
                continue
            if own.images and self.kind not in _KINDS_OF["images"]:
                raise ValueError(f"`{name}.images` means nothing for kind {self.kind!r}; it belongs to {', '.join(_KINDS_OF['images'])}")
            if own.path is None and own.images is None and (self.images or self.kind in ("csv", "folder")):
                raise ValueError(f"`{name}` names no `path` or `images` of its own; it would be the training samples")

    @property
    def concentration(self) -> float | None:
        """Of the Dirichlet distribution that shares are drawn from; None: ``shard`` counts samples off."""
        if self.partition is None:
            return None
        match = _PARTITION.fullmatch(self.partition)
        if match is None or not 0.001 <= float(match[1]) <= 1000:
            raise ValueError(f'`partition` is {self.partition!r}; write "dirichlet:0.3", with a concentration of 0.001 to 1000')
        return float(match[1])

    def split(self, name: Split) -> DataSplit:
        """Where a split lies, with the keys of ``[data]`` filled in.

        For "validation" and "test" without a table of their own, ``images`` and ``labels`` that were named for training stay filled in; ask
        ``has_own`` first.
        """
        own = {"train": DataSplit(), "validation": self.validation, "test": self.test}[name]
        return DataSplit(
            path=own.path or self.path,
            images=own.images or self.images,
            labels=own.labels or self.labels,
            id_column=own.id_column or self.id_column,
            shard=own.shard or self.shard,
            limit=own.limit or self.limit,
        )

    def has_own(self, name: Split) -> bool:
        """Whether the run file says where this split lies (training always does)."""
        return name == "train" or getattr(self, name) != DataSplit()


def _parse_shard(text: str) -> tuple[int, int]:
    match = _SHARD.fullmatch(text)
    which, count = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= which <= count:
        raise ValueError(f'`shard` is {text!r}; write "2/3" for the second of three shares')
    return which - 1, count
