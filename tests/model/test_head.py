"""Log-probabilities from the output projection, over all ids and over those that can be drawn."""

import pytest
import torch

from nano3.model.head import log_probs
from nano3.model.layers import Linear

V, LIMIT, T = 60, 40, 0.7


def plain():
    head = Linear(16, V)
    torch.nn.init.normal_(head.weight, generator=torch.Generator().manual_seed(0))
    return head


def called():
    """As an adapter or a hook makes it: the module must be called."""
    head = plain()
    head.register_forward_hook(lambda module, args, out: out)
    return head


def inputs():
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(2, 7, 16, generator=generator, requires_grad=True)
    targets = torch.randint(0, LIMIT, (2, 7), generator=generator)
    targets[1, 4:] = -100
    return hidden, targets


@pytest.mark.parametrize("make", [plain, called])
def test_the_distribution_is_over_the_ids_below_the_limit(make):
    """With the entropies, and the gradients of hidden states and weight, of which the other rows have none."""
    results = []
    for limited in (True, False):
        head, (hidden, targets) = make(), inputs()
        if limited:
            found, entropies = log_probs(head, hidden, targets, T, entropy=True, ids_limit=LIMIT)
            assert torch.equal(log_probs(head, hidden, targets, T, ids_limit=LIMIT), found)
        else:
            kept = targets != -100
            every = (head(hidden)[..., :LIMIT] / T).log_softmax(-1)
            found = every.gather(-1, targets.clamp_min(0)[..., None])[..., 0] * kept
            entropies = -(every.exp() * every).sum(-1) * kept
        (found.sum() + 0.3 * entropies.sum()).backward()
        results.append([found.detach(), entropies.detach(), hidden.grad, head.weight.grad])
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)
    assert not results[0][-1][LIMIT:].any()


@pytest.mark.parametrize("make", [plain, called])
@pytest.mark.parametrize("limit", [V, V + 1])
def test_a_limit_beyond_the_vocabulary_changes_no_bit(make, limit):
    head, (hidden, targets) = make(), inputs()
    assert torch.equal(log_probs(head, hidden, targets, T, ids_limit=limit), log_probs(head, hidden, targets, T))


@pytest.mark.parametrize("make", [plain, called])
def test_a_target_that_cannot_be_drawn_is_an_error(make):
    hidden, targets = inputs()
    targets[0, 3] = LIMIT
    with pytest.raises(ValueError, match=f"target {LIMIT} is not below ids_limit, {LIMIT}"):
        log_probs(make(), hidden, targets, T, ids_limit=LIMIT)
