"""STD-CL: heads and banks beside a supervised step, and what is left of them afterwards."""

from __future__ import annotations

import copy

import pytest
import torch
from skelops.methods import STDCL, Supervised, encoders
from skelops.methods.encoders import Encoder
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize, softplus

SMALL = {"positives": 2, "hard_negatives": 3, "random_negatives": 2}
ENCODERS = {
    "AGCN": {"width": 8, "bodies": 1},
    "CTRGCN": {"width": 8, "bodies": 1},
    "DSTA": {"width": 8, "heads": 2},
    "HCN": {"width": 8, "frames": 16, "dropout": 0.0},
    "STGCN": {"width": 4, "dropout": 0.0},
}


def encoder(name: str) -> Encoder:
    return getattr(encoders, name)("nw_ucla", **ENCODERS[name])


def framework(name: str = "STGCN", clips: int = 24, **arguments: object) -> STDCL:
    made = encoder(name)
    frames = -(-16 // made.temporal_stride)
    return STDCL(made, 3, clips, frames, **{"embedding": 12, **SMALL, **arguments})


def mined(f: Tensor, label: Tensor, bank: Tensor, labels: Tensor, drawn: Tensor, tau: float = 0.8) -> Tensor:
    """The loss of one clip against its hardest positives, hard negatives and drawn negatives."""
    s = bank @ f
    hard_positives = s[labels == label].sort().values[:2]
    hard = s[labels != label].sort(descending=True).values[:3]
    terms = [softplus(torch.logsumexp(negatives / tau, 0) - hard_positives / tau).mean() for negatives in (hard, drawn)]
    return torch.stack(terms).mean()


@pytest.mark.parametrize("name", ENCODERS)
def test_a_step_with_every_encoder(name: str) -> None:
    model = framework(name).train()
    clips, labels = torch.randn(24, 3, 16, 20, 1), torch.arange(24) % 3
    model(clips, labels, torch.arange(24), torch.Generator().manual_seed(0))["loss"].backward()
    for parameter in model.parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all()


def test_losses_equal_the_formulas() -> None:
    # As many random negatives as there are negatives: all of them, whatever is drawn.
    model = framework(random_negatives=16).train()
    clips, labels = torch.randn(24, 3, 16, 20, 1), torch.arange(24) % 3
    twin = copy.deepcopy(model)
    found = model(clips, labels, torch.arange(24), torch.Generator().manual_seed(0))
    last = twin.encoder_q.feature_map(clips)
    embeddings = {
        "spatial": normalize(twin.heads["spatial"](last.mean(2)), dim=1),
        "temporal": normalize(twin.heads["temporal"](last.mean(3)), dim=1),
    }
    logits = twin.encoder_q.fc(last.mean((2, 3)))
    loss = cross_entropy(logits, labels)
    for name, f in embeddings.items():
        bank = f.detach()
        terms = [mined(f[i], labels[i], bank, labels, bank[labels != labels[i]] @ f[i]) for i in range(24)]
        term = torch.stack(terms).mean()
        torch.testing.assert_close(found[f"loss_{name}"], term, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(model.banks[name].bank, bank, atol=1e-5, rtol=1e-4)
        loss = loss + 0.5 * term
    torch.testing.assert_close(found["loss"], loss, atol=1e-4, rtol=1e-4)
    found["loss"].backward()
    loss.backward()
    ours, theirs = (torch.cat([p.grad.flatten() for p in m.parameters()]) for m in (model, twin))
    assert (ours - theirs).norm() < 1e-3 * theirs.norm()


def test_a_cold_start_adds_nothing() -> None:
    model = framework(clips=100, positives=50).train()
    losses = model(torch.randn(4, 3, 16, 20, 1), torch.arange(4) % 3, torch.tensor([7, 3, 99, 50]))
    assert losses["loss_spatial"] == losses["loss_temporal"] == 0
    torch.testing.assert_close(losses["loss"].detach(), losses["loss_class"])
    assert model.banks["spatial"].visited.nonzero().flatten().tolist() == [3, 7, 50, 99]
    losses["loss"].backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_what_is_kept_is_the_plain_encoder() -> None:
    """At inference nothing of the plug-in is left: the same names, and the same results as a plain classifier."""
    model = framework("CTRGCN").eval()
    plain = Supervised(encoder("CTRGCN"), 3).eval()
    plain.encoder_q.load_state_dict(model.encoder_q.state_dict())
    clips = torch.randn(2, 3, 16, 20, 1)
    assert torch.equal(plain.encoder_q(clips), model.encoder_q(clips))
