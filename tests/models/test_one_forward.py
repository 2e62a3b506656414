"""Contract 1: acting step by step with the cache and training on whole sequences give the same numbers."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_align.models.agent import Agent
from lit_align.models.config import BackboneConfig
from lit_align.models.transformer import Layer, Transformer, rotary, rotate
from lit_align.spaces import ActionCodec, gamepad_space

TINY = BackboneConfig(image_size=32, channels=4, blocks=0, width=32, layers=3, heads=2, context=5)


def make_agent(**changes):
    torch.manual_seed(0)
    config = BackboneConfig.from_dict({**TINY.to_dict(), **changes})
    agent = Agent(config, ActionCodec(gamepad_space())).eval()
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


@torch.no_grad()
def test_the_whole_sequence_forward_is_attention_written_as_loops():
    transformer = make_agent().backbone.transformer
    x = torch.randn(2, 12, TINY.width)
    torch.testing.assert_close(transformer(x), brute_force(transformer, x), atol=1e-5, rtol=1e-5)


@torch.no_grad()
@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 23), min_size=2, max_size=5), st.sampled_from(["layernorm", "rmsnorm"]), st.booleans())
def test_cached_steps_equal_whole_episodes_with_resets_at_different_times(lengths, norm, qk_norm):
    """Three worlds play such episodes one after another, each resetting on its own, beyond the window of 5 frames."""
    agent = make_agent(norm=norm, qk_norm=qk_norm)
    worlds = 3
    generator = torch.Generator().manual_seed(1)
    schedule = [lengths[w:] + lengths[:w] for w in range(worlds)]
    episodes = [
        [torch.randint(0, 256, (n, 32, 32, 3), dtype=torch.uint8, generator=generator) for n in order]
        for order in schedule
    ]
    cache = agent.new_cache(worlds)
    place = [(0, 0)] * worlds
    stepped: list[list[list[torch.Tensor]]] = [[[] for _ in order] for order in schedule]
    for _ in range(sum(lengths)):
        for w, (_, t) in enumerate(place):
            if t == 0:
                cache.reset([w])
        frames = torch.stack([episodes[w][e][t] for w, (e, t) in enumerate(place)])
        log_probs = agent.step(frames, cache)
        for w, (e, t) in enumerate(place):
            stepped[w][e].append(log_probs[w])
            place[w] = (e, t + 1) if t + 1 < schedule[w][e] else (e + 1, 0)
    for w in range(worlds):
        for e, frames in enumerate(episodes[w]):
            torch.testing.assert_close(torch.stack(stepped[w][e]), agent(frames[None])[0], atol=1e-5, rtol=1e-5)


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
