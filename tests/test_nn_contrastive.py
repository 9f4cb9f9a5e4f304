"""MomentumQueue, MemoryBank, InfoNCELoss and MomentumEncoder."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import skelops
from skelops.nn import InfoNCELoss, MemoryBank, MomentumEncoder, MomentumQueue


class MoCo(nn.Module):
    """The usual form: queue and pointer are buffers of the model."""

    def __init__(self, dim: int, size: int) -> None:
        super().__init__()
        self.head = nn.Linear(3, dim)
        self.register_buffer("queue", nn.functional.normalize(torch.randn(dim, size), dim=0))
        self.register_buffer("queue_ptr", torch.tensor([5]))


def test_queue_starts_with_unit_columns_and_is_seeded() -> None:
    queue = MomentumQueue(8, 30, torch.Generator().manual_seed(3))
    assert queue.queue.shape == (8, 30)
    torch.testing.assert_close(queue.queue.norm(dim=0), torch.ones(30))
    assert queue.queue_ptr.tolist() == [0]
    assert torch.equal(queue.queue, MomentumQueue(8, 30, torch.Generator().manual_seed(3)).queue)
    assert queue.state_dict().keys() == {"queue", "queue_ptr"}
    assert "dim=8, size=30" in repr(queue)


@pytest.mark.parametrize("size", [30, 8])
def test_queue_wraps_around(size: int) -> None:
    queue, written = MomentumQueue(8, size), []
    for _ in range(3):
        written.append(torch.randn(7, 8))
        queue.enqueue_(written[-1])
    for age, key in enumerate(reversed(torch.cat(written)[-size:])):
        assert torch.equal(queue.queue[:, (21 - 1 - age) % size], key)
    assert queue.queue_ptr.tolist() == [21 % size]


def test_old_checkpoints_load() -> None:
    old, queue = MoCo(8, 30), MomentumQueue(8, 30)
    assert queue.load_state_dict(old.state_dict(), strict=False).missing_keys == []
    assert torch.equal(queue.queue, old.queue)
    assert queue.queue_ptr.tolist() == [5]
    again = MomentumQueue(8, 30)
    again.load_state_dict(queue.state_dict())
    assert torch.equal(again.queue, old.queue)
    with pytest.raises(RuntimeError, match="size mismatch"):
        MomentumQueue(8, 31).load_state_dict(old.state_dict(), strict=False)


@pytest.mark.parametrize(("dim", "size", "name"), [(0, 5, "dim"), (5, -1, "size")])
def test_queue_refuses_nothing(dim: int, size: int, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: expected a positive integer"):
        MomentumQueue(dim, size)


def test_queue_refuses_keys_of_another_width() -> None:
    queue = MomentumQueue(8, 30)
    before = queue.queue.clone()
    with pytest.raises(ValueError, match=r"keys: expected shape \(n, dim\) with dim=8, got \(8, 30\)"):
        queue.enqueue_(torch.randn(8, 30))
    assert torch.equal(queue.queue, before) and queue.queue_ptr == 0


def test_loss_is_the_function() -> None:
    query, key, queue = torch.randn(5, 8), torch.randn(5, 8), MomentumQueue(8, 30).queue
    negatives, valid = torch.randn(5, 2, 8), torch.tensor([20])
    loss = InfoNCELoss(0.2, normalize=False, reduction="none")
    got = loss(query, key, queue, extra_negatives=negatives, extra_positives=negatives, valid=valid)
    expected = skelops.info_nce(
        query,
        key,
        queue,
        0.2,
        extra_negatives=negatives,
        extra_positives=negatives,
        valid=valid,
        normalize=False,
        reduction="none",
    )
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    assert "temperature=0.2" in repr(loss)
    with pytest.raises(ValueError, match="temperature"):
        InfoNCELoss(0.0)
    with pytest.raises(ValueError, match="reduction"):
        InfoNCELoss(reduction="max")


def encoder() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))


def test_momentum_encoder() -> None:
    online = encoder()
    slow = MomentumEncoder(online, 0.9)
    assert {name.removeprefix("encoder.") for name in slow.state_dict()} == online.state_dict().keys()
    assert not any(parameter.requires_grad for parameter in slow.parameters())
    assert all(parameter.requires_grad for parameter in online.parameters())
    with torch.no_grad():
        for parameter in online.parameters():
            parameter.add_(1)
    before = [parameter.clone() for parameter in slow.parameters()]
    slow.update(online)
    for old, new, source in zip(before, slow.parameters(), online.parameters(), strict=True):
        torch.testing.assert_close(new, 0.9 * old + 0.1 * source.detach())
    slow.update(online, momentum=0)
    assert all(torch.equal(a, b) for a, b in zip(slow.parameters(), online.parameters(), strict=True))


def test_momentum_encoder_trains_its_statistics_without_gradient() -> None:
    slow = MomentumEncoder(encoder())
    out = slow(torch.randn(6, 3, requires_grad=True))
    assert not out.requires_grad
    assert slow.encoder[1].num_batches_tracked == 1
    slow.eval()
    slow(torch.randn(6, 3))
    assert slow.encoder[1].num_batches_tracked == 1


def test_momentum_encoder_buffers() -> None:
    online = encoder()
    slow = MomentumEncoder(online, 0.5)
    online(torch.randn(6, 3))
    slow.update(online)
    assert slow.encoder[1].num_batches_tracked == 0
    slow.update(online, buffers=True)
    assert slow.encoder[1].num_batches_tracked == 1
    torch.testing.assert_close(slow.encoder[1].running_mean, 0.5 * online[1].running_mean)


def test_momentum_encoder_refuses_another_module() -> None:
    slow = MomentumEncoder(encoder())
    with pytest.raises(ValueError, match=r"encoder: .*'1\.bias' is in the copy alone"):
        slow.update(nn.Sequential(nn.Linear(3, 4)))


def test_step_compiles_whole() -> None:
    online, memory, loss = nn.Linear(3, 8), MomentumQueue(8, 30), InfoNCELoss()

    def step(x: Tensor, key: Tensor) -> Tensor:
        result = loss(online(x), key, memory.queue).loss
        memory.enqueue_(key)
        return result

    x, key = torch.randn(5, 3), torch.randn(5, 8)
    state = {name: value.clone() for name, value in memory.state_dict().items()}
    expected, written = step(x, key), memory.queue.clone()
    memory.load_state_dict(state)
    got = torch.compile(step, fullgraph=True)(x, key)
    torch.testing.assert_close(got, expected)
    assert torch.equal(memory.queue, written)
    got.backward()
    assert online.weight.grad is not None


def test_memory_bank_keeps_the_last_embedding_of_a_clip() -> None:
    bank = MemoryBank(4, 6)
    embeddings = torch.randn(5, 4)
    bank.write_(embeddings, torch.tensor([3, 1, 3, 2, 3]), torch.tensor([5, 0, 5, 2, 5]))
    assert bank.visited.tolist() == [True, False, True, False, False, True]
    assert torch.equal(bank.bank[[0, 2, 5]], embeddings[[1, 3, 4]])
    assert bank.labels[[0, 2, 5]].tolist() == [1, 2, 3]
    assert not bank.bank[[1, 3, 4]].any()
    bank.write_(2 * embeddings[:1].bfloat16(), torch.tensor([7]), torch.tensor([0]))
    assert bank.bank.dtype == torch.float32 and torch.equal(bank.bank[0], 2 * embeddings[0].bfloat16().float())
    bank.write_(embeddings[:0], torch.zeros(0).long(), torch.zeros(0).long())
    assert bank.labels[0] == 7 and torch.equal(bank.bank[2], embeddings[3])


@pytest.mark.parametrize(
    ("embeddings", "labels", "indices", "error", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(2).long(), torch.zeros(2).long(), ValueError, r"embeddings: .*D=4.*\(2, 3\)"),
        (torch.zeros(2, 4), torch.zeros(3).long(), torch.zeros(2).long(), ValueError, r"labels: .*N=2.*\(3,\)"),
        (torch.zeros(2, 4), torch.zeros(2).long(), torch.zeros(2), TypeError, "indices: expected torch.int64"),
        (torch.zeros(2, 4), torch.zeros(2).int(), torch.zeros(2).long(), TypeError, "labels: expected torch.int64"),
        (torch.zeros(2, 4), torch.zeros(2).long().to("meta"), torch.zeros(2).long(), ValueError, "labels: .* device"),
    ],
)
def test_memory_bank_checks_what_is_written(
    embeddings: Tensor, labels: Tensor, indices: Tensor, error: type[Exception], message: str
) -> None:
    bank = MemoryBank(4, 6)
    with pytest.raises(error, match=message):
        bank.write_(embeddings, labels, indices)
    assert not bank.visited.any()


def test_memory_bank_has_a_size() -> None:
    with pytest.raises(ValueError, match="size: expected a positive integer, got 0"):
        MemoryBank(4, 0)
