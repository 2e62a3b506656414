"""Windowed attention against attention written as a loop, short, long, and cut into blocks."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_align.models.attention import BLOCKS, window_attention, window_mask


def loop(q, k, v, context):
    """Each query by itself over the keys that its window holds."""
    out = torch.zeros_like(v)
    for t in range(q.shape[2]):
        past = slice(max(0, t - context + 1), t + 1)
        scores = torch.einsum("bhd,bhsd->bhs", q[:, :, t], k[:, :, past]) / q.shape[-1] ** 0.5
        out[:, :, t] = torch.einsum("bhs,bhsd->bhd", scores.softmax(-1), v[:, :, past])
    return out


def random_inputs(steps, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 3, steps, 4, generator=generator, requires_grad=True) for _ in range(3)]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 70), st.integers(1, 9), st.integers(0, 99))
def test_it_is_the_loop_at_every_length_and_window(steps, context, seed):
    q, k, v = random_inputs(steps, seed)
    found = window_attention(q, k, v, context, window_mask(steps, context, q.device))
    torch.testing.assert_close(found, loop(q, k, v, context), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("steps", [5, 17, 4 * BLOCKS + 3])
def test_gradients_are_those_of_the_loop(steps):
    q, k, v = random_inputs(steps)
    weights = torch.randn_like(v)
    ours = torch.autograd.grad(
        (window_attention(q, k, v, 4, window_mask(steps, 4, q.device)) * weights).sum(), (q, k, v)
    )
    theirs = torch.autograd.grad((loop(q, k, v, 4) * weights).sum(), (q, k, v))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_the_three_ways_are_all_taken():
    device = torch.device("cpu")
    masks = [window_mask(steps, 8, device) for steps in (8, 9, 8 * BLOCKS + 1)]
    assert [None if mask is None else tuple(mask.shape) for mask in masks] == [None, (9, 9), (BLOCKS + 1, 8, 16)]
