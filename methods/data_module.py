"""The data sets as a Lightning data module: one tensor on the host, batches drawn by index."""

from __future__ import annotations

from collections.abc import Iterator
from inspect import signature
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from skelops import data
from skelops.data import SkeletonDataset

#: Arguments of the readers that belong to the module, and what stands in their place.
RESERVED = {
    "split": "training and evaluation each take theirs",
    "frames": "set data.frames",
    "views": "the training clips of NW-UCLA are those of views 1 and 2, the test clips those of view 3",
}


class ShuffledBatches(Sampler[list[int]]):
    """Batches of indices in an order that depends on seed and epoch alone, so that a resumed run sees the same batches.

    The last, smaller batch is dropped.

    Args:
        clips: how many there are.
        batch_size: of each batch.
        seed: of the order.
        epoch_clips: clips of an epoch, in which every clip comes equally often up to chance; None: each once.
    """

    def __init__(self, clips: int, batch_size: int, seed: int, epoch_clips: int | None = None) -> None:
        self.epoch_clips = clips if epoch_clips is None else epoch_clips
        if not 1 <= batch_size <= self.epoch_clips:
            raise ValueError(
                f"batch_size: expected 1 to {self.epoch_clips}, the training clips of an epoch, got {batch_size}"
            )
        self.clips, self.batch_size, self.seed, self.epoch = clips, batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before every epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.epoch_clips // self.batch_size

    def __iter__(self) -> Iterator[list[int]]:
        # numpy-like seeding of one stream per epoch: seeds of neighbouring runs must not share their epochs.
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        repeats = -(-self.epoch_clips // self.clips)
        order = torch.randperm(self.clips * repeats, generator=generator)[: self.epoch_clips] % self.clips
        yield from (batch.tolist() for batch in order.split(self.batch_size)[: len(self)])


def labelled_subset(labels: Tensor, share: float, seed: int = 0) -> Tensor:
    """Indices (sorted) of a share of the clips of every class, drawn at random: ``round(share * clips)`` of them, but
    at least one.

    Raises:
        ValueError: ``share`` is not above 0 and at most 1.
    """
    if not 0 < share <= 1:
        raise ValueError(f"labelled: expected a share above 0 and at most 1, got {share}")
    generator = torch.Generator().manual_seed(seed)
    chosen = []
    for label in labels.unique():
        of_class = (labels == label).nonzero().squeeze(1)
        order = of_class[torch.randperm(len(of_class), generator=generator)]
        chosen.append(order[: max(1, round(share * len(of_class)))])
    return torch.cat(chosen).sort().values


class SkeletonData(pl.LightningDataModule):
    """Training and test split of a data set.

    Args:
        source: "synthetic", "nw_ucla", "ntu" or "pku_mmd": the reader `skelops.data.SOURCE.load`.
        folder: folder of the files; the synthetic set needs none.
        frames: frames T that clips are resized to.
        batch_size: clips per step; the last, smaller batch of an epoch is dropped.
        seed: of the order of the clips.
        repeats: how often every training clip comes in an epoch.
        whole_clips: training clips keep all of their frames (zero-padded), of which the views draw; the clips of
            evaluation have ``frames`` in any case. Not of the synthetic set.
        labelled: share of the clips of every class that training gets, for semi-supervised fine-tuning; which ones
            depends on ``seed`` alone. They come so often that an epoch has as many steps as with all clips.
        recipe: how the reader prepares clips (an argument of those of recorded sets); None leaves it to ``options``.
        options: further arguments of the reader, such as ``{benchmark: ntu60_xview}`` or ``{align: false}``.

    Raises:
        ValueError: ``options`` has a key that is not theirs (training and test clips would be others than they say) or
            that the reader does not know, or there is a ``recipe`` for a reader without one.
    """

    def __init__(
        self,
        source: Literal["synthetic", "nw_ucla", "ntu", "pku_mmd"] = "synthetic",
        folder: str | None = None,
        frames: int = 64,
        batch_size: int = 128,
        seed: int = 0,
        repeats: int = 1,
        whole_clips: bool = False,
        labelled: float = 1.0,
        recipe: str | None = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        options = options or {}
        reserved = RESERVED if recipe is None else {**RESERVED, "recipe": f"data.recipe is {recipe}"}
        for name in sorted(reserved.keys() & options.keys()):
            raise ValueError(f"data.options: expected no {name} ({reserved[name]}), got {options[name]!r}")
        known = signature(getattr(data, source).load).parameters.keys() - {"folder", *RESERVED}
        for name in sorted(options.keys() - known):
            raise ValueError(f"data.options: expected some of {', '.join(sorted(known))} for {source}, got {name}")
        if recipe is not None and "recipe" not in known:
            raise ValueError(f"data.recipe: expected none for {source}, got {recipe}")
        self.save_hyperparameters()
        self._splits: dict[str, SkeletonDataset] = {}

    def split(self, name: str) -> SkeletonDataset:
        """The split "train" or "test", its clips of equal length, read at the first call.

        Raises:
            ValueError: no folder for a set that needs one, or a file is bad.
        """
        if name not in self._splits:
            self._splits[name] = self._load(name, self.hparams["frames"])
        return self._splits[name]

    def training_clips(self) -> SkeletonDataset:
        """What training batches are drawn from: the training split or its whole clips, or the labelled share of them.

        Raises:
            ValueError: there are no whole clips of this source; else as `split`.
        """
        whole = self.hparams["whole_clips"]
        if whole and self.hparams["source"] == "synthetic":
            raise ValueError(f"data.whole_clips: expected false for {self.hparams['source']}, got true")
        if "training" not in self._splits:
            clips = self._load("train", None) if whole else self.split("train")
            if (share := self.hparams["labelled"]) != 1:
                clips = clips.subset(labelled_subset(clips.labels, share, self.hparams["seed"]))
            self._splits["training"] = clips
        return self._splits["training"]

    def _load(self, split: str, frames: int | None) -> SkeletonDataset:
        source, folder = self.hparams["source"], self.hparams["folder"]
        arguments = {"split": split, "frames": frames, **(self.hparams["options"] or {})}
        if (recipe := self.hparams["recipe"]) is not None:
            arguments["recipe"] = recipe
        reader = getattr(data, source)
        if source == "synthetic":
            return reader.load(**arguments)
        if folder is None:
            raise ValueError(f"data.folder: expected the folder of the {source} files, got none")
        return reader.load(folder, **arguments)

    def train_dataloader(self) -> DataLoader[Any]:
        """Batches (clips (N, 3, T, V, M), labels (N,), indices, lengths (N,))."""
        train, repeats = self.training_clips(), self.hparams["repeats"]
        if repeats < 1:
            raise ValueError(f"data.repeats: expected at least 1, got {repeats}")
        epoch_clips = repeats * len(self.split("train"))
        batches = ShuffledBatches(len(train), self.hparams["batch_size"], self.hparams["seed"], epoch_clips)
        # A list of indices gathers a batch in one call. The loader's own generator keeps it off the global one, which
        # drives dropout and is part of the checkpoint.
        return DataLoader(train, sampler=batches, batch_size=None, generator=torch.Generator())
