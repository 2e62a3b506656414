"""What worlds may show, and what is said of those that show something else."""

import importlib
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st

from lit_align.envs import WorldFailed
from lit_align.envs.gym import Observations, make
from lit_align.errors import UserError
from lit_align.rollout.sampler import Sampler
from tests.helpers import SIZE, LightWorld, tiny_agent

PIXELS = spaces.Box(0, 255, (16, 16, 3), np.uint8)
VECTOR = spaces.Box(-np.inf, np.inf, (5,), np.float64)
READ: dict[str, tuple[spaces.Space[Any], int, int]] = {
    "pixels": (PIXELS, 16, 0),
    "vector": (VECTOR, 0, 5),
    "both": (spaces.Dict({"pixels": PIXELS, "vector": VECTOR}), 16, 5),
    "pixels by name": (spaces.Dict({"pixels": PIXELS}), 16, 0),
    "vector by name": (spaces.Dict({"vector": VECTOR}), 0, 5),
}


def world(space):
    made = LightWorld()
    made.observation_space = space
    return made


@pytest.mark.parametrize("name", READ)
@given(seed=st.integers(0, 999))
def test_an_observation_is_split_into_pixels_and_vector(name, seed):
    space, size, numbers = READ[name]
    shown = Observations.of(world(space))
    assert (shown.image_size, shown.vector_size) == (size, numbers)
    space.seed(seed)
    observation = space.sample()
    frame, vector = shown.split(observation)
    assert frame.shape == (size, size, 3)
    assert vector.shape == (numbers,)
    assert [part.dtype for part in (frame, vector)] == [np.uint8, np.float32]
    parts = observation if isinstance(observation, dict) else {"pixels" if size else "vector": observation}
    if size:
        assert np.array_equal(frame, parts["pixels"])
    if numbers:
        assert np.array_equal(vector, parts["vector"].astype(np.float32))


@pytest.mark.parametrize(
    "space",
    [
        spaces.Discrete(4),
        spaces.Box(0, 255, (16, 20, 3), np.uint8),
        spaces.Box(0, 255, (16, 16, 1), np.uint8),
        spaces.Box(0, 255, (16, 16), np.uint8),
        spaces.Box(0, 255, (128,), np.uint8),
        spaces.Box(0, 1, (16, 16, 3), np.float32),
        spaces.Box(0, 1, (3, 3), np.float32),
        spaces.Box(0, 1, (), np.float32),
        spaces.Dict({"image": PIXELS, "vector": VECTOR}),
        spaces.Dict({"pixels": VECTOR}),
        spaces.Dict({"pixels": PIXELS, "vector": VECTOR, "mission": spaces.Text(4)}),
        spaces.Dict({}),
        spaces.Tuple((PIXELS, VECTOR)),
    ],
    ids=str,
)
def test_other_spaces_are_refused_by_name(space):
    with pytest.raises(
        UserError, match=r"environment LightWorld shows .*; expected pixels, .*keys 'pixels' and 'vector'"
    ):
        Observations.of(world(space))


@pytest.mark.parametrize(
    ("name", "observation", "word"),
    [
        (
            "pixels",
            np.zeros((16, 17, 3), np.uint8),
            r"pixels \(16, 17, 3\), uint8; its observation space says \(16, 16, 3\)",
        ),
        ("pixels", np.zeros((16, 16, 3), np.float32), "float32; its observation space says"),
        ("vector", np.zeros(4), r"a vector of shape \(4,\); its observation space says \(5,\)"),
        ("vector", np.array([0, 0, np.nan, 0, 0]), "a vector whose number 2 is nan; expected finite numbers"),
        ("vector", np.array([0, 1e300, 0, 0, 0]), "a vector whose number 1 is inf"),  # too large for float32
        ("vector", "left", r"showed a str; expected a vector of 5 numbers"),
        (
            "both",
            {"pixels": np.zeros((16, 16, 3), np.uint8)},
            r"showed a dict with the keys \['pixels'\]; expected .* under the keys",
        ),
        ("both", np.zeros(5), "showed a ndarray; expected"),
        ("both", {"pixels": np.zeros((16, 16, 3), np.uint8), "vector": np.zeros(3)}, r"a vector of shape \(3,\)"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_an_observation_that_is_not_of_its_space_is_named(name, observation, word):
    with pytest.raises(UserError, match=f"the environment LightWorld .*{word}"):
        Observations.of(world(READ[name][0])).split(observation)


def test_a_world_that_shows_nonsense_in_play_is_named():
    class Sick(LightWorld):
        def step(self, action):
            observation, *rest = super().step(action)
            return (np.full_like(observation, np.nan) if self.total == 3 else observation), *rest

    agent = tiny_agent(image_size=0, vector_size=2)
    with (
        Sampler(agent, lambda: Sick(0, vector=2), 2, backoff=0.01) as sampler,
        pytest.raises(WorldFailed, match=r"world 0 \(Sick\), seed 1, at step 3: showed .* is nan"),
    ):
        list(sampler.play([(0, 1), (1, 2)]))


def test_worlds_of_gymnasium_are_read():
    cart = make("CartPole-v1")
    assert Observations.of(cart) == Observations("CartPole-v1", 0, 4)
    Observations.of(cart).split(cart.reset(seed=0)[0])
    with pytest.raises(UserError, match="the environment FrozenLake-v1 shows Discrete"):
        Observations.of(make("FrozenLake-v1"))


@pytest.mark.parametrize("args", [{"vector": 2}, {"size": 0, "vector": 2}, {}])
def test_a_blanked_world_shows_zeros_of_the_same_kind(args):
    # By name: mypy would follow an import into files that it is not told to check.
    match = importlib.import_module("lit_align.evaluation.match").Match
    world = match("tests.helpers:LitAlign-test/Light-v0", args, 1, 0, blank=True).make_world()
    for observation in (world.reset(seed=0)[0], world.step(world.action_space.sample())[0]):
        frame, vector = Observations.of(world).split(observation)
        assert frame.shape == (args.get("size", SIZE), args.get("size", SIZE), 3)
        assert len(vector) == args.get("vector", 0)
        assert not frame.any()
        assert not vector.any()
    assert isinstance(world, gymnasium.ObservationWrapper)
