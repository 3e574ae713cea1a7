"""ntm/addressing.py: each of the paper's equations against the oracle, and where the answer is plain to see."""

import numpy as np
import oracle
import pytest
import torch
from torch.autograd import gradcheck

from ntm import addressing, memory

B, H, N, M = 2, 3, 6, 4


@pytest.fixture
def given():
    def weighting():
        return torch.softmax(3 * torch.randn(B, H, N, dtype=torch.float64), -1)

    return {
        "memory": torch.randn(B, N, M, dtype=torch.float64),
        "previous": weighting(),
        "key": torch.randn(B, H, M, dtype=torch.float64),
        "key_strength": 5 * torch.rand(B, H, 1, dtype=torch.float64),
        "interpolation_gate": torch.rand(B, H, 1, dtype=torch.float64),
        "shift_weighting": torch.softmax(2 * torch.randn(B, H, 3, dtype=torch.float64), -1),
        "sharpening": 1 + 4 * torch.rand(B, H, 1, dtype=torch.float64),
    }


def by_head(function, *tensors):
    """Apply a function of one head's arrays to each sequence and head."""
    heads = [[function(*(t[b, h].numpy() for t in tensors)) for h in range(H)] for b in range(B)]
    return np.array(heads)


def test_similarity_is_equation_6(given):
    ours = addressing.cosine_similarity(given["key"], given["memory"])
    rows = given["memory"].unsqueeze(1).expand(B, H, N, M)
    theirs = by_head(lambda key, rows: [oracle.similarity(key, row) for row in rows], given["key"], rows)
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)
    plain = torch.nn.functional.cosine_similarity(given["key"].unsqueeze(2), rows, dim=-1)
    np.testing.assert_allclose(ours, plain, atol=1e-5)  # the paper's, without the epsilon


def test_content_weighting_is_equation_5(given):
    similarity = torch.randn(B, H, N, dtype=torch.float64)
    ours = addressing.content_weighting(similarity, given["key_strength"])
    theirs = by_head(lambda k, beta: oracle.softmax(list(beta[0] * k)), similarity, given["key_strength"])
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)


def test_whole_addressing_is_equations_5_to_9(given):
    ours = addressing.address(**given)
    for b in range(B):
        for h in range(H):
            controls = [given[name][b, h].numpy() for name in list(given)[2:]]
            key, beta, g, s, gamma = controls
            theirs = oracle.address(
                given["memory"][b].tolist(), given["previous"][b, h].tolist(), key, beta[0], g[0], s, gamma[0]
            )
            for part, other in zip(ours, theirs, strict=True):  # w and w~
                np.testing.assert_allclose(part[b, h], other, rtol=1e-10, atol=1e-14)


def test_a_weighting_sums_to_one_and_is_never_negative(given):
    for ours in addressing.address(**given):
        assert (ours >= 0).all()
        np.testing.assert_allclose(ours.sum(-1), 1, rtol=1e-12)


@pytest.mark.parametrize("direction", [-1, 0, 1])
@pytest.mark.parametrize("row", range(N))
def test_a_sure_shift_moves_a_one_hot_weighting_by_exactly_one_row_around_the_ends_too(row, direction):
    one_hot = torch.eye(N)[row].view(1, 1, N)
    sure = torch.eye(3)[direction + 1].view(1, 1, 3)
    assert torch.equal(addressing.shift(one_hot, sure)[0, 0], torch.eye(N)[(row + direction) % N])


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_shift_on_tiny_memories(rows):
    gated, s = torch.softmax(torch.randn(rows), 0), torch.softmax(torch.randn(3), 0)
    ours = addressing.shift(gated.view(1, 1, rows), s.view(1, 1, 3))[0, 0]
    theirs = [
        sum(gated[j] * s[o + 1] for j in range(rows) for o in (-1, 0, 1) if (j + o) % rows == i) for i in range(rows)
    ]
    torch.testing.assert_close(ours, torch.stack(theirs))


def test_gate_at_its_ends(given):
    ones, zeros = torch.ones(B, H, 1), torch.zeros(B, H, 1)
    content = given["previous"].flip(-1)
    torch.testing.assert_close(addressing.interpolate(content, given["previous"], ones), content)
    assert torch.equal(addressing.interpolate(content, given["previous"], zeros), given["previous"])


def test_sharpening_by_one_changes_nothing_and_by_much_leaves_the_largest(given):
    same = addressing.sharpen(given["previous"], torch.ones(B, H, 1))
    np.testing.assert_allclose(same, given["previous"], atol=1e-14)
    sharp = addressing.sharpen(given["previous"], torch.full((B, H, 1), 1e3))
    assert torch.equal(sharp.argmax(-1), given["previous"].argmax(-1))
    assert (sharp.max(-1).values > 0.99).all()


def test_gradients(given):
    inputs = tuple(value.requires_grad_() for value in given.values())
    assert gradcheck(lambda *parts: addressing.address(*parts), inputs)
    erase, add = torch.rand(B, H, M, dtype=torch.float64), torch.randn(B, H, M, dtype=torch.float64)
    parts = given["memory"], given["previous"], erase.requires_grad_(), add.requires_grad_()
    assert gradcheck(memory.write, parts)


@pytest.mark.parametrize("value", [0.0, memory.INITIAL_VALUE])
def test_gradients_are_finite_at_empty_memory_and_one_hot_weightings(given, value):
    given["memory"] = torch.full((B, N, M), value, dtype=torch.float64)
    given["previous"] = torch.eye(N, dtype=torch.float64)[0].expand(B, H, N).clone()
    given["key"] = torch.zeros(B, H, M, dtype=torch.float64)
    inputs = [part.requires_grad_() for part in given.values()]
    out = torch.stack(addressing.address(**given))
    for gradient in torch.autograd.grad((out * torch.randn_like(out)).sum(), inputs):
        assert gradient.isfinite().all()


def test_blur_is_0_on_one_row_and_largest_on_all():
    weighting = torch.tensor([[0.0, 1, 0, 0], [0.5, 0.5, 0, 0], [0.25, 0.25, 0.25, 0.25]])
    assert addressing.blur(weighting).tolist() == [0, 0.5, 0.75]
