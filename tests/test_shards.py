"""ntm/shards.py: nothing is left out, and no sum depends on how a batch is shared out."""

import pytest
import torch
from conftest import lively_model

from experiment.errors import InputError
from experiment.processes import Processes
from ntm import Backend, LSTMBaseline
from ntm.shards import MAX_SHARDS, WHOLE, Part, add_in_pairs, part_counts, shards


@pytest.mark.parametrize("batch", [1, 7, 8, 9, 16, 43, 64, 100, 4096])
def test_each_sequence_is_in_one_shard_and_one_part(batch):
    for count in part_counts(batch):
        ranges = [r for i in range(count) for r in Part(i, count).shards(batch)]
        assert tuple(ranges) == shards(batch)
        assert [n for first, last in ranges for n in range(first, last)] == list(range(batch))
        sequences = [Part(i, count).sequences(batch) for i in range(count)]
        assert [n for part in sequences for n in range(part.start, part.stop)] == list(range(batch))
    assert len(shards(batch)) <= MAX_SHARDS + 1


def test_numbers_are_added_in_pairs():
    tiny = 2.0**-53
    assert add_in_pairs([1.0, tiny, tiny, tiny]) == (1 + tiny) + (tiny + tiny) == 1 + 2 * tiny
    assert add_in_pairs([1.0, tiny, tiny]) == 1  # the first half is the larger one
    first, second = torch.ones(2), torch.ones(2)
    assert add_in_pairs([first, second]) is first
    assert first.tolist() == [2, 2]


def test_how_many_parts_there_can_be():
    assert [part_counts(batch) for batch in (1, 16, 24, 64, 256, 4096)] == [
        [1], [1, 2], [1, 2], [1, 2, 4], [1, 2, 4, 8, 16], [1, 2, 4, 8, 16],
    ]  # fmt: skip
    with pytest.raises(ValueError, match="a batch of 16 has"):
        Part(0, 4).shards(16)
    for index in (-1, 2, 5):
        with pytest.raises(ValueError, match=f"part {index} of 2"):
            Part(index, 2).shards(16)
    with pytest.raises(InputError, match=r"-batch_size 64: cannot be shared out over 3 .* allowed are 1, 2, 4; "):
        Processes(count=3).part(64)


def batch_of(size):
    torch.manual_seed(1)
    inputs, targets = torch.randn(6, size, 5), torch.randint(0, 2, (6, size, 3)).float()
    return inputs, targets, (torch.rand(6, size) < 0.7).float()


@pytest.mark.parametrize("backend", [Backend.REFERENCE, Backend.FUSED])
@pytest.mark.parametrize("flattened", [True, False])
@pytest.mark.parametrize(("size", "count"), [(16, 2), (43, 2), (64, 2), (64, 4), (130, 8)])
def test_parts_add_up_to_the_batch(backend, flattened, size, count):
    """Gradients, loss and logits; on the fused path to the bit, whatever the number of parts."""
    model = lively_model(dtype=torch.float32, backend=backend)
    if flattened:
        model.flatten_parameters()
    more = torch.randn(size, 9, 5), torch.rand(6, size, 6) < 0.8, 0.1

    def compute(part=WHOLE):
        model.zero_grad()
        loss, logits = model.forward_backward(*batch_of(size), *more, part)
        return loss, logits, [parameter.grad.clone() for parameter in model.parameters()]

    whole = compute()
    parts = [compute(Part(i, count)) for i in range(count)]
    sums = add_in_pairs([each[0] for each in parts]), torch.cat([each[1] for each in parts], 1)
    gradients = [add_in_pairs(list(each)) for each in zip(*(each[2] for each in parts), strict=True)]
    if backend is Backend.FUSED:
        assert sums[0] == whole[0]
        assert torch.equal(sums[1], whole[1])
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(gradients, whole[2], strict=True))
    else:
        assert sums[0] == pytest.approx(whole[0], rel=1e-6)
        torch.testing.assert_close([sums[1], *gradients], [whole[1], *whole[2]])


def test_parts_of_an_lstm_add_up_to_the_batch():
    torch.manual_seed(0)
    model = LSTMBaseline(5, 3, 6, 2).double()
    batch = [each.double() for each in batch_of(43)]
    loss, logits = model.forward_backward(*batch)
    whole = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    parts = [model.forward_backward(*batch, part=Part(i, 2)) for i in range(2)]
    assert sum(part[0] for part in parts) == pytest.approx(loss)
    torch.testing.assert_close(torch.cat([part[1] for part in parts], 1), logits)
    torch.testing.assert_close([parameter.grad for parameter in model.parameters()], whole)
