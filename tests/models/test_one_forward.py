"""Contract 1: acting step by step with the cache and training on whole sequences give the same numbers."""

from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lit_align.models.agent import Agent
from lit_align.models.attention import window_attention, window_mask
from lit_align.models.config import BackboneConfig
from lit_align.models.heads import PolicyConfig
from lit_align.models.transformer import Layer, Transformer, rotary, rotate
from lit_align.spaces import ActionCodec, gamepad_space

TINY = BackboneConfig(image_size=32, channels=4, blocks=0, width=32, layers=3, heads=2, context=5)


def make_agent(heads="independent", **changes):
    torch.manual_seed(0)
    config = BackboneConfig.from_dict({**TINY.to_dict(), **changes})
    agent = Agent(config, ActionCodec(gamepad_space()), policy=PolicyConfig(heads, width=16)).eval()
    for parameter in agent.parameters():  # weights large enough that attention matters
        parameter.data += 0.1 * torch.randn_like(parameter)
    return agent


def brute_force(transformer: Transformer, x: torch.Tensor) -> torch.Tensor:
    """Attention as loops over frames and heads: each sees the last `context` frames, by relative position."""
    config = transformer.config
    width = config.width // config.heads
    for layer in transformer.layers:
        assert isinstance(layer, Layer)
        h = layer.norm1(x)
        q, k, v = layer.attention.qkv(h).chunk(3, dim=-1)
        out = torch.zeros_like(x)
        for b in range(x.shape[0]):
            for t in range(x.shape[1]):
                first = max(0, t - config.context + 1)
                for head in range(config.heads):
                    part = slice(head * width, (head + 1) * width)
                    # Only the distance between frames may matter: the query is rotated by it, the key not at all.
                    scores = []
                    for s in range(first, t + 1):
                        cos, sin = rotary(torch.tensor(t - s), width, config.rope_base)
                        scores.append((rotate(q[b, t, part], cos, sin) * k[b, s, part]).sum() / width**0.5)
                    weights = torch.stack(scores).softmax(0)
                    out[b, t, part] = (weights[:, None] * v[b, first : t + 1, part]).sum(0)
        x = x + layer.attention.out(out)
        x = x + layer.mlp(layer.norm2(x))
    return transformer.norm(x)


@pytest.mark.parametrize("steps", [1, 5, 11])
def test_a_network_that_sees_one_frame_gives_what_attention_over_one_frame_gives(steps):
    transformer = make_agent(context=1).backbone.transformer
    x = torch.randn(2, steps, TINY.width)
    positions = rotary(torch.arange(steps)[:, None, None], TINY.width // TINY.heads, TINY.rope_base)
    mask = window_mask(steps, 1, x.device)
    y = x
    for layer in transformer.layers:
        (q, k), v = layer.attention.split(layer.norm1(y), *positions)
        y = y + layer.attention.merge(window_attention(q, k, v, 1, mask))
        y = y + layer.mlp(layer.norm2(y))
    y = transformer.norm(y)
    assert torch.equal(transformer(x), y)
    weights, parameters = torch.randn_like(y), list(transformer.parameters())
    found, expected = (torch.autograd.grad((out * weights).sum(), parameters) for out in (transformer(x), y))
    for a, b in zip(found, expected, strict=True):  # but for the rounding of a softmax over one score
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("steps", [4, 12, 43])  # within the window, beyond it, and cut into blocks
def test_the_whole_sequence_forward_is_attention_written_as_loops(steps):
    transformer = make_agent().backbone.transformer
    x = torch.randn(2, steps, TINY.width)
    torch.testing.assert_close(transformer(x), brute_force(transformer, x), atol=1e-5, rtol=1e-5)


def test_rotation_is_multiplication_by_a_unit_complex_number():
    x, positions = torch.randn(2, 5, 8, dtype=torch.float64), torch.tensor([0.0, 1.0, 7.0, 100.0, 1e5])
    cos, sin = (part.double() for part in rotary(positions, 8, 100.0))
    a, b = rotate(x, cos, sin).chunk(2, dim=-1)
    angles = positions[:, None] * 100.0 ** (-torch.arange(4, dtype=torch.float64) / 4)
    expected = torch.complex(*x.chunk(2, dim=-1)) * torch.polar(torch.ones_like(angles), angles)
    torch.testing.assert_close(torch.complex(a, b), expected, atol=1e-6, rtol=1e-6)


KINDS: dict[str, dict[str, Any]] = {
    "layernorm": {},
    "rmsnorm and qk-norm": {"norm": "rmsnorm", "qk_norm": True},
    "autoregressive": {"heads": "autoregressive"},
    "pixels and a vector": {"vector_size": 3},
    "a vector alone": {"image_size": 0, "vector_size": 3, "heads": "autoregressive"},
    "impala": {"encoder": "impala"},
    "patch": {"encoder": "patch"},
}


@torch.no_grad()
@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 23), min_size=2, max_size=5), st.sampled_from(sorted(KINDS)))
@example([61, 3], "layernorm").via("long enough for blocks")
def test_cached_steps_equal_whole_episodes_with_resets_at_different_times(lengths, kind):
    """Three worlds play such episodes one after another, each resetting on its own, beyond the window of 5 frames."""
    agent = make_agent(**KINDS[kind])
    worlds, size = 3, agent.config.image_size
    generator = torch.Generator().manual_seed(1)
    schedule = [lengths[w % len(lengths) :] + lengths[: w % len(lengths)] for w in range(worlds)]

    def make_up(n):
        return (
            torch.randint(0, 256, (n, size, size, 3), dtype=torch.uint8, generator=generator),
            torch.randn(n, agent.config.vector_size, generator=generator),
            torch.stack([torch.randint(0, c, (n,), generator=generator) for c in agent.codec.sizes], dim=-1),
        )

    episodes = [[make_up(n) for n in order] for order in schedule]
    cache = agent.new_cache(worlds)
    place = [(0, 0)] * worlds
    stepped: list[list[list[torch.Tensor]]] = [[[] for _ in order] for order in schedule]
    for _ in range(sum(lengths)):
        for w, (_, t) in enumerate(place):
            if t == 0:
                cache.reset([w])
        frames, vectors, actions = (
            torch.stack([episodes[w][e][i][t] for w, (e, t) in enumerate(place)]) for i in range(3)
        )
        log_probs = agent.step(frames, cache, vectors, actions)
        for w, (e, t) in enumerate(place):
            stepped[w][e].append(log_probs[w])
            place[w] = (e, t + 1) if t + 1 < schedule[w][e] else (e + 1, 0)
    for w in range(worlds):
        for e, (frames, vectors, actions) in enumerate(episodes[w]):
            whole = agent(frames[None], vectors[None], actions[None])[0]
            torch.testing.assert_close(torch.stack(stepped[w][e]), whole, atol=1e-5, rtol=1e-5)


def test_checkpointing_changes_memory_not_gradients():
    agent = make_agent(vector_size=3)
    frames = torch.randint(0, 256, (2, 12, 32, 32, 3), dtype=torch.uint8)
    vectors = torch.randn(2, 12, 3)
    kept: list[dict[str, torch.Tensor]] = []
    saved = []
    for again in (False, True):
        agent.backbone.checkpointing = again
        agent.zero_grad()
        counter = [0]

        def pack(x, counter=counter):
            counter[0] += x.numel()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            loss = agent(frames, vectors).square().mean()
        loss.backward()
        kept.append({name: p.grad.clone() for name, p in agent.named_parameters() if p.grad is not None})
        saved.append(counter[0])
    assert kept[0].keys() == kept[1].keys() == dict(agent.named_parameters()).keys()
    for name, gradient in kept[0].items():
        torch.testing.assert_close(kept[1][name], gradient, msg=name)
    assert saved[1] < saved[0] / 2


@torch.no_grad()
def test_a_step_is_one_graph_of_static_shapes():
    """No branch on values, no shape that depends on them: what CUDA graphs and torch.compile need."""
    agent = make_agent("autoregressive")
    compiled = torch.compile(agent.choose, backend="eager", fullgraph=True, dynamic=False)
    counted = torch._dynamo.utils.counters["stats"]
    before = counted["unique_graphs"]
    caches = agent.new_cache(2), agent.new_cache(2)
    generator = torch.Generator().manual_seed(0)
    for t in range(9):  # past the window, with a reset on the way
        frames = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8, generator=generator)
        noise = torch.rand(2, 16, generator=generator)
        if t == 4:
            for cache in caches:
                cache.reset([1])
        ours = compiled(frames, caches[0], None, noise)
        theirs = agent.choose(frames, caches[1], None, noise)
        assert torch.equal(ours[0], theirs[0])
        torch.testing.assert_close(ours[1], theirs[1])
    assert counted["unique_graphs"] - before == 1


@torch.no_grad()
def test_what_comes_later_changes_nothing_and_the_receptive_field_is_what_it_says():
    agent = make_agent()
    field = agent.config.receptive_field
    frames = torch.randint(0, 256, (1, field + 4, 32, 32, 3), dtype=torch.uint8)
    before = agent(frames)
    later = frames.clone()
    later[:, -1] = 255 - later[:, -1]
    assert torch.equal(agent(later)[:, :-1], before[:, :-1])
    first = frames.clone()
    first[:, 0] = 255 - first[:, 0]
    changed = (agent(first) - before).abs().amax((0, 2, 3)) > 0
    assert changed[: field // 2].any()
    assert not changed[field:].any()
