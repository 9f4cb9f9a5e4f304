"""Linear probe, kNN and the random baseline."""

from __future__ import annotations

import math

import pytest
import torch
from skelops.methods import STGCN, SkeleMixCLR, evaluation
from skelops.methods.evaluation import LinearProbe, evaluate, extract_features, knn_predict, random_twin
from torch import Tensor
from torch.nn.functional import cross_entropy

from skelops.data import SkeletonDataset


def encoder() -> STGCN:
    return STGCN("nw_ucla", width=4, feature_dim=12, dropout=0.5)


def clusters(per_class: int, classes: int = 4, width: int = 8, spread: float = 0.3) -> tuple[Tensor, Tensor]:
    labels = torch.arange(classes).repeat_interleave(per_class)
    return torch.eye(classes, width)[labels] * 3 + spread * torch.randn(len(labels), width), labels


def test_features_are_those_of_the_frozen_encoder() -> None:
    model = encoder().train()
    clips = torch.randn(7, 3, 12, 20, 1)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    features = extract_features(model, clips, batch_size=3)
    assert model.training
    assert not features.requires_grad
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    torch.testing.assert_close(features, torch.cat([model.eval().features(clip[None]) for clip in clips]))


def test_features_do_not_pass_the_projector() -> None:
    framework = SkeleMixCLR(encoder(), embedding=5, queue_size=16)
    assert extract_features(framework.encoder_q, torch.randn(2, 3, 8, 20, 1)).shape == (2, 12)


@pytest.mark.parametrize("k", [1, 3, 10])
def test_knn_votes_by_similarity(k: int) -> None:
    train, labels = clusters(9, spread=2.0)
    test = torch.randn(1030, 8)  # more than one block
    expected = []
    for row in test:
        similarity = torch.nn.functional.cosine_similarity(row[None], train)
        votes = [0.0] * 4
        for index in similarity.argsort(descending=True)[:k].tolist():
            votes[int(labels[index])] += math.exp(similarity[index].item() / 0.1)
        expected.append(votes.index(max(votes)))
    assert knn_predict(train, labels, test, 4, [k])[k].tolist() == expected


def test_knn_ignores_the_length_of_features() -> None:
    train, labels = clusters(5)
    test, _ = clusters(3)
    scaled = knn_predict(train * torch.rand(20, 1).add(0.1), labels, 7 * test, 4, [1, 5])
    for k, predicted in knn_predict(train, labels, test, 4, [1, 5]).items():
        assert torch.equal(predicted, scaled[k])


@pytest.mark.parametrize("k", [0, 21])
def test_knn_refuses_more_neighbours_than_clips(k: int) -> None:
    train, labels = clusters(5)
    with pytest.raises(ValueError, match=r"^neighbours: expected 1 to 20"):
        knn_predict(train, labels, train, 4, [k])


def test_knn_needs_a_k() -> None:
    train, labels = clusters(5)
    with pytest.raises(ValueError, match="^neighbours: expected at least one k, got none"):
        knn_predict(train, labels, train, 4, [])


@pytest.mark.parametrize(
    "arguments",
    [
        {"solver": "SGD"},
        {"iterations": 0},
        {"solver": "sgd", "epochs": 0},
        {"solver": "sgd", "lr": 0.0},
        {"solver": "sgd", "milestones": [-3]},
        {"l2": -1.0},
        {"l2": math.nan},
    ],
)
def test_a_probe_that_would_not_fit_is_refused(arguments: dict) -> None:
    with pytest.raises(ValueError, match=f"^{list(arguments)[-1]}: expected"):
        LinearProbe(**arguments)


@pytest.mark.parametrize("probe", [LinearProbe(), LinearProbe("sgd", lr=0.5, epochs=30, milestones=(20,))])
def test_probe_separates_clusters_and_is_reproducible(probe: LinearProbe) -> None:
    (train, labels), (test, truth) = clusters(40), clusters(20)
    predicted = probe.fit_predict(train, labels, test, 4)
    assert (predicted == truth).float().mean() > 0.97
    torch.manual_seed(99)
    assert torch.equal(probe.fit_predict(train, labels, test, 4), predicted)
    shuffled = labels[torch.randperm(len(labels))]
    assert (probe.fit_predict(train, shuffled, test, 4) == truth).float().mean() < 0.6


def test_lbfgs_reaches_the_optimum_at_any_scale_of_the_features() -> None:
    (train, labels), (test, _) = clusters(30, spread=1.5), clusters(30, spread=1.5)
    probe = LinearProbe()
    plain = probe.fit_predict(train, labels, test, 4)
    scaled = probe.fit_predict(1e-4 * train - 2e-4, labels, 1e-4 * test - 2e-4, 4)
    assert (plain == scaled).float().mean() > 0.98
    standard = (train - train.mean(0)) / train.std(0, correction=0)
    fc = torch.nn.Linear(8, 4).double()
    fc.weight.data.zero_()
    fc.bias.data.zero_()
    probe._fit_lbfgs(fc, standard.double(), labels)
    loss = cross_entropy(fc(standard.double()), labels) + probe.l2 / 2 * fc.weight.square().sum()
    gradients = torch.autograd.grad(loss, list(fc.parameters()))
    assert max(g.abs().max() for g in gradients) < 1e-4


def test_random_twin_is_untrained_and_reproducible() -> None:
    torch.manual_seed(7)
    model = encoder()
    before = torch.get_rng_state()
    first, second = random_twin(model), random_twin(model)
    assert torch.equal(torch.get_rng_state(), before)
    assert first.arguments == model.arguments
    states = [m.state_dict() for m in (first, second, model)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["st_gcn_networks.9.tcn.2.weight"], states[2]["st_gcn_networks.9.tcn.2.weight"])


def dataset(clips: int, layout: str = "nw_ucla") -> SkeletonDataset:
    joints = {"nw_ucla": 20, "ntu": 25}[layout]
    labels = torch.arange(clips) % 2
    poses = torch.randn(2, 3, 1, joints, 1, generator=torch.Generator().manual_seed(0))
    data = poses[labels] + 0.1 * torch.randn(clips, 3, 8, joints, 1)
    return SkeletonDataset(data, labels, layout, ("a", "b"))


def test_evaluation_counts_what_it_predicts() -> None:
    found = evaluate(encoder(), dataset(40), dataset(20), neighbours=(1, 5))
    assert found.confusion.shape == (2, 2)
    assert found.confusion.sum(1).tolist() == [10, 10]
    assert found.linear == pytest.approx(found.confusion.diagonal().sum().item() / 20)
    assert found.linear > 0.9  # two fixed poses: even a random encoder tells them apart
    assert found.knn.keys() == {1, 5}


def test_evaluation_refuses_another_layout() -> None:
    with pytest.raises(ValueError, match="^data: expected layout nw_ucla as the encoder, got ntu"):
        evaluate(encoder(), dataset(4, "ntu"), dataset(4, "ntu"))


@pytest.mark.parametrize("neighbours", [(), (5,)], ids=str)
def test_evaluation_refuses_neighbours_before_it_computes_features(
    neighbours: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "extract_features", lambda *_: pytest.fail("features were computed"))
    with pytest.raises(ValueError, match="^neighbours: expected"):
        evaluate(encoder(), dataset(4), dataset(4), neighbours=neighbours)


def test_evaluation_refuses_an_encoder_that_diverged() -> None:
    diverged = encoder()
    with torch.no_grad():
        diverged.data_bn.weight.fill_(torch.inf)
    with pytest.raises(ValueError, match="^encoder: expected finite features, got NaN or infinite ones"):
        evaluate(diverged, dataset(4), dataset(4), neighbours=(1,))
