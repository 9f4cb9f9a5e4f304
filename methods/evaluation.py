"""Evaluation of a frozen encoder: linear probe and k nearest neighbours on its pooled features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from skelops.methods.encoders import Encoder
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from skelops._checks import one_of, positive, positive_integer
from skelops.data import SkeletonDataset


@torch.no_grad()
def in_batches(model: nn.Module, function: Callable[[Tensor], Tensor], clips: Tensor, batch_size: int = 128) -> Tensor:
    """A function of the model of clips (N, C, T, V, M), batch by batch on the model's device, in evaluation mode."""
    device, was_training = next(model.parameters()).device, model.training
    model.eval()
    results = [function(batch.to(device)) for batch in clips.split(batch_size)]
    model.train(was_training)
    return torch.cat(results)


def extract_features(encoder: Encoder, clips: Tensor, batch_size: int = 128) -> Tensor:
    """Features (N, D) of clips (N, C, T, V, M) without augmentation, the encoder in evaluation mode, on its device."""
    return in_batches(encoder, encoder.features, clips, batch_size)


def _check_neighbours(neighbours: Sequence[int], clips: int) -> None:
    if not neighbours:
        raise ValueError("neighbours: expected at least one k, got none")
    if not all(1 <= k <= clips for k in neighbours):
        raise ValueError(f"neighbours: expected 1 to {clips} (the training clips), got {list(neighbours)}")


def knn_predict(
    train: Tensor, labels: Tensor, test: Tensor, num_classes: int, neighbours: Sequence[int], temperature: float = 0.1
) -> dict[int, Tensor]:
    """Predictions (N,) of k nearest neighbours for every k of ``neighbours``.

    A neighbour of cosine similarity s votes for its class with weight exp(s / temperature) (Wu et al., CVPR 2018; the
    monitor of SkeleMixCLR).

    Args:
        train: features (P, D) of the training clips; ``labels`` (P,) are theirs.
        test: features (N, D).

    Raises:
        ValueError: there is no k, or some k is not between 1 and P.
    """
    _check_neighbours(neighbours, len(train))
    train, predictions = normalize(train, dim=1), {k: [labels[:0]] for k in neighbours}
    for batch in normalize(test, dim=1).split(1024):
        similarity, index = (batch @ train.T).topk(max(neighbours))
        weights, classes = (similarity / temperature).exp(), labels[index]
        for k in neighbours:
            votes = weights.new_zeros(len(batch), num_classes).scatter_add_(1, classes[:, :k], weights[:, :k])
            predictions[k].append(votes.argmax(1))
    return {k: torch.cat(parts) for k, parts in predictions.items()}


@dataclass(frozen=True)
class LinearProbe:
    """Softmax regression on frozen features; equal for equal features, without a random number but in "sgd".

    Args:
        solver: "lbfgs" fits features standardised by the mean and deviation of the training clips to convergence, so
            that no learning rate favours an encoder by the scale of its features; "sgd" is the published recipe of
            SkeleMixCLR on the features as they are (batches of 128, momentum 0.9, no weight decay).
        l2: of "lbfgs": weight of half the squared norm of the weights, beside the mean cross-entropy.
        iterations: of "lbfgs": at most so many.
        lr: of "sgd".
        epochs: of "sgd".
        milestones: of "sgd": epochs after which the learning rate is multiplied by 0.1.

    Raises:
        ValueError: an argument is out of range: without a step the layer would predict the first class everywhere.
    """

    solver: Literal["lbfgs", "sgd"] = "lbfgs"
    l2: float = 1e-3
    iterations: int = 200
    lr: float = 3.0
    epochs: int = 150
    milestones: tuple[int, ...] = (80,)

    def __post_init__(self) -> None:
        one_of("solver", self.solver, ("lbfgs", "sgd"))
        if not 0 <= self.l2 < float("inf"):
            raise ValueError(f"l2: expected a finite number of at least 0, got {self.l2}")
        positive("lr", self.lr)
        positive_integer("iterations", self.iterations)
        positive_integer("epochs", self.epochs)
        if any(epoch < 0 for epoch in self.milestones):
            raise ValueError(f"milestones: expected epochs of at least 0, got {list(self.milestones)}")

    def fit_predict(self, train: Tensor, labels: Tensor, test: Tensor, num_classes: int) -> Tensor:
        """Predictions (N,) for test features (N, D) after training on features (P, D) with labels (P,)."""
        fc = nn.Linear(train.shape[1], num_classes).to(train.device)
        nn.init.zeros_(fc.weight)
        nn.init.zeros_(fc.bias)
        if self.solver == "sgd":
            self._fit_sgd(fc, train, labels)
        else:
            mean, deviation = train.mean(0), train.std(0, correction=0).clamp(min=1e-8)
            train, test = (train - mean) / deviation, (test - mean) / deviation
            self._fit_lbfgs(fc, train, labels)
        with torch.no_grad():
            return fc(test).argmax(1)

    def _fit_lbfgs(self, fc: nn.Linear, train: Tensor, labels: Tensor) -> None:
        optimizer = torch.optim.LBFGS(fc.parameters(), max_iter=self.iterations, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = cross_entropy(fc(train), labels) + self.l2 / 2 * fc.weight.square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)

    def _fit_sgd(self, fc: nn.Linear, train: Tensor, labels: Tensor) -> None:
        optimizer = torch.optim.SGD(fc.parameters(), self.lr, momentum=0.9)
        schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, list(self.milestones))
        generator = torch.Generator().manual_seed(0)
        for _ in range(self.epochs):
            for batch in torch.randperm(len(train), generator=generator).to(train.device).split(128):
                optimizer.zero_grad()
                cross_entropy(fc(train[batch]), labels[batch]).backward()
                optimizer.step()
            schedule.step()


@dataclass
class Evaluation:
    """Accuracies of one encoder on the test clips, and the confusion matrix of its linear probe.

    Attributes:
        linear: accuracy of the linear probe, from 0 to 1.
        knn: accuracy of k nearest neighbours by k.
        confusion: (classes, classes) counts; rows are the true classes.
    """

    linear: float
    knn: dict[int, float] = field(default_factory=dict)
    confusion: Tensor = field(default_factory=lambda: torch.empty(0, 0))


def evaluate(
    encoder: Encoder,
    train: SkeletonDataset,
    test: SkeletonDataset,
    probe: LinearProbe = LinearProbe(),
    neighbours: Sequence[int] = (1, 10, 20),
) -> Evaluation:
    """Linear probe and k nearest neighbours of a frozen encoder; its features are computed once.

    Raises:
        ValueError: the layout of the clips is not that of the encoder, there is no k or one exceeds the training clips,
            or features are not finite.
    """
    if train.layout != encoder.layout.name:
        raise ValueError(f"data: expected layout {encoder.layout.name} as the encoder, got {train.layout}")
    _check_neighbours(neighbours, len(train.clips))
    features = [extract_features(encoder, split.clips) for split in (train, test)]
    if not all(part.isfinite().all() for part in features):
        raise ValueError("encoder: expected finite features, got NaN or infinite ones, as if training diverged")
    labels = [split.labels.to(features[0].device) for split in (train, test)]
    classes = train.num_classes
    votes = knn_predict(features[0], labels[0], features[1], classes, neighbours)
    predicted = probe.fit_predict(features[0], labels[0], features[1], classes)
    confusion = torch.bincount(labels[1] * classes + predicted, minlength=classes**2).view(classes, classes)
    return Evaluation(
        linear=_accuracy(predicted, labels[1]),
        knn={k: _accuracy(predictions, labels[1]) for k, predictions in votes.items()},
        confusion=confusion.cpu(),
    )


def _accuracy(predicted: Tensor, labels: Tensor) -> float:
    return (predicted == labels).double().mean().item()


def random_twin(encoder: Encoder, seed: int = 0) -> Encoder:
    """An untrained encoder of the same configuration, on the same device: the baseline of every evaluation.

    Its weights are those of PyTorch's default initialisation, which does better here than the released one.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        build: Callable[..., Encoder] = type(encoder)
        twin = build(**encoder.arguments)
    return twin.to(next(encoder.parameters()).device)
