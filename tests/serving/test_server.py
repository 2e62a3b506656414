"""A server with clients of every kind: what each gets is what it would get alone."""

from __future__ import annotations

import io
import json
import socket
import threading
import time
from contextlib import ExitStack, suppress

import numpy as np
import pytest
import torch
from PIL import Image

from lit_align.envs.gym import make
from lit_align.rollout.sampler import Sampler
from lit_align.serving import websocket
from lit_align.serving.client import Client
from lit_align.serving.protocol import ProtocolError
from lit_align.serving.service import Limits
from lit_align.serving.session import DRAWN
from tests.helpers import LightWorld, tiny_agent
from tests.serving.helpers import Raw, alone, film, rgb, running

PATIENCE = 30.0


@pytest.fixture(params=["websocket", "unix"])
def folder(request, tmp_path):
    """What makes `running` take one transport or the other."""
    return None if request.param == "websocket" else tmp_path


def expected(agent, frames, seed, episode=0, world_seed=0, temperature=1.0, top_p=1.0, vectors=None):
    """Classes `(T, heads)` by brute force: an agent of one world, and the noise that docs/serving.md tells."""
    rng = np.random.default_rng(np.random.SeedSequence([seed, episode, world_seed]))
    noise = np.stack([rng.random(len(agent.codec.heads), np.float32) for _ in frames])
    return alone(agent, frames, noise, temperature, top_p, vectors)[0]


def plays_right(client, agent, seed, steps=8, frames=None):
    """Plays a new episode of classes and checks it."""
    frames = film(seed, steps) if frames is None else frames
    episode = client.reset()
    got = np.stack([client.act(frame) for frame in frames])
    assert np.array_equal(got, expected(agent, frames, seed, episode))


def test_actions_and_log_probs_are_those_of_the_agent_alone(folder):
    agent, frames = tiny_agent(), film(3, 20)
    with running(agent, folder) as server, Client(server.address, seed=3) as client:
        got = []
        for frame in frames:
            got.append(client.act(frame))
            assert client.log_prob < 0
        for action, classes in zip(got, expected(agent, frames, 3), strict=True):
            decoded = agent.codec.decode(classes)
            assert set(action) == set(decoded)
            assert all(np.array_equal(action[key], decoded[key]) for key in decoded)
        # The same as `act`, where there is no chance in it.
        with Client(server.address, temperature=0) as greedy:
            for frame in frames:
                action, own = greedy.act(frame), agent.act(frame, temperature=0)
                assert all(np.array_equal(action[key], own[key]) for key in own)


def test_an_episode_is_the_one_that_the_sampler_plays(folder):
    agent = tiny_agent()
    with Sampler(agent, lambda: LightWorld(), worlds=2, seed=5) as sampler:
        played = {one.id: one for one in sampler.play([(7, 70), (8, 80), (9, 90)])}
    with running(agent, folder) as server, Client(server.address, seed=5) as client:
        world = make("LitAlign-test/Light-v0")
        for number, trajectory in played.items():
            assert client.reset(number, world_seed=trajectory.seed) == number
            frame, _ = world.reset(seed=trajectory.seed)
            for classes, log_prob in zip(trajectory.actions, trajectory.log_probs, strict=True):
                action = client.act(frame)
                assert np.array_equal(agent.codec.encode(action), classes)
                assert client.log_prob == pytest.approx(log_prob, abs=1e-4)
                frame, *_ = world.step(action)


def test_many_clients_at_once_get_what_each_would_get_alone(folder):
    agent, wrong = tiny_agent(), []
    options = [{}, {"temperature": 0.5}, {"top_p": 0.7}, {"temperature": 0.0}, {}, {}]

    def play(server, number):
        try:
            frames = film(number, 25)
            with Client(server.address, seed=number, answer="classes", **options[number]) as client:
                for steps in (frames[:10], frames[10:]):
                    episode = client.reset()
                    got = np.stack([client.act(frame) for frame in steps])
                    right = expected(agent, steps, number, episode, **options[number])
                    assert np.array_equal(got, right)
        except BaseException as error:
            wrong.append((number, error))

    with running(agent, folder) as server:
        threads = [threading.Thread(target=play, args=(server, number)) for number in range(len(options))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
    assert not wrong
    assert server.stats["frames"] == 25 * len(options)
    assert (server.stats["clients"]["now"], server.stats["clients"]["all"]) == (0, len(options))
    assert server.stats["errors"] == {}


def test_vectors_alone_and_beside_pixels(folder):
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(8, 3)).astype(np.float32)
    for size in (0, 32):
        agent = tiny_agent(vector_size=3, image_size=size)
        frames = film(0, 8, size)
        with running(agent, folder) as server, Client(server.address, answer="classes") as client:
            got = [client.act(f if size else None, v) for f, v in zip(frames, vectors, strict=True)]
            assert np.array_equal(got, expected(agent, frames, 0, vectors=vectors))
            for bad, word in ((np.zeros(2), "2 numbers"), (np.array([0, np.nan, 0]), "not finite")):
                with pytest.raises(ProtocolError, match=word):
                    client.act(frames[0] if size else None, bad)


def test_pictures_of_other_kinds_and_sizes_are_seen_as_training_saw_them(folder):
    agent = tiny_agent()
    large = film(0, 6, 64)
    small = np.stack([np.asarray(Image.fromarray(f).resize((32, 32), Image.Resampling.BOX)) for f in large])
    jpegs, seen = [], []
    for frame in small:
        file = io.BytesIO()
        Image.fromarray(frame).save(file, "jpeg")
        jpegs.append(file.getvalue())
        seen.append(np.asarray(Image.open(file)))
    with running(agent, folder) as server, Client(server.address, answer="classes") as client:
        assert np.array_equal([client.act(f) for f in large], expected(agent, small, 0))
        client.reset(0)
        assert np.array_equal([client.act(f) for f in jpegs], expected(agent, np.stack(seen), 0))


def test_a_reset_forgets_one_past_and_no_other(folder):
    agent = tiny_agent()
    frames = film(0, 30)
    with (
        running(agent, folder) as server,
        Client(server.address, seed=1, answer="classes") as one,
        Client(server.address, seed=2, answer="classes") as other,
    ):
        got = []
        for t, frame in enumerate(frames):
            got.append(other.act(frame))
            if t % 5 == 0:
                assert one.reset() == t // 5
            assert np.array_equal(one.act(frame), expected(agent, frames[t - t % 5 : t + 1], 1, t // 5)[-1])
        assert np.array_equal(got, expected(agent, frames, 2))


def test_a_slot_that_is_used_again_knows_nothing_of_before(folder):
    agent = tiny_agent()
    with running(agent, folder, Limits(clients=1)) as server:
        for seed in range(3):
            with until_welcome(server, seed=seed, answer="classes") as client:
                plays_right(client, agent, seed)


def until_welcome(server, **options):
    """A client, as soon as there is room for one: the server needs a moment to see that another has gone."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            return Client(server.address, **options)
        except ProtocolError as error:
            if error.code != "full" or time.monotonic() > end:
                raise
            time.sleep(0.02)


def test_more_clients_than_there_may_be_are_refused_and_the_others_play_on(folder):
    agent = tiny_agent()
    with running(agent, folder, Limits(clients=2)) as server, ExitStack() as stack:
        clients = [stack.enter_context(Client(server.address, seed=i, answer="classes")) for i in range(2)]
        for _ in range(3):
            with pytest.raises(ProtocolError, match="2 clients are here") as caught:
                Client(server.address)
            assert caught.value.code == "full"
        for seed, client in enumerate(clients):
            plays_right(client, agent, seed)


def test_those_who_do_not_know_the_token_are_refused(folder, capfd):
    secret = "three-blind-mice"
    with running(tiny_agent(), folder, token=secret) as server:
        for wrong in (None, "", "three-blind-mic", "\ud800", secret.upper()):
            with pytest.raises(ProtocolError, match="token") as caught:
                Client(server.address, token=wrong)
            assert caught.value.code == "token"
        with Client(server.address, token=secret) as client:
            client.act(film(0, 1)[0])
            assert secret not in str(client.welcome) + str(client.stats())
    assert secret not in json.dumps(server.stats) + "".join(capfd.readouterr())


def test_a_frame_that_does_not_fit_is_refused_and_takes_no_step(folder):
    agent, frames = tiny_agent(), film(1, 6)
    with running(agent, folder, Limits(clients=2, frame=64)) as server:
        client = Client(server.address, seed=1, answer="classes")
        got = []
        for frame in frames:
            for bad, word in (
                (np.zeros((32, 16, 3), np.uint8), "16x32"),
                (np.zeros((65, 65, 3), np.uint8), "1 to 64"),
                (b"\x89PNG, and then nothing of the kind", "cannot be decoded"),
            ):
                with pytest.raises(ProtocolError, match=word) as caught:
                    client.act(bad)
                assert not caught.value.fatal
            got.append(client.act(frame))
        assert np.array_equal(got, expected(agent, frames, 1))
        client.close()


def test_long_episodes_take_their_noise_step_by_step_whatever_is_refused_or_begun_anew(folder):
    """It is drawn many steps at a time: past the borders, at which frames are refused, and from one that is cut off."""
    agent, frames = tiny_agent(), film(5, 2 * DRAWN + 6)
    with running(agent, folder) as server, Client(server.address, seed=5, answer="classes") as client:
        for episode, steps in enumerate((len(frames), DRAWN + 3, DRAWN, 2)):
            client.reset(episode)
            got = []
            for t, frame in enumerate(frames[:steps]):
                if t % DRAWN == 0:
                    with pytest.raises(ProtocolError, match="decoded"):
                        client.act(b"\x89PNG, and then nothing of the kind")
                got.append(client.act(frame))
            assert np.array_equal(got, expected(agent, frames[:steps], 5, episode))


def test_a_step_out_of_order_is_refused_and_takes_no_step(tmp_path):
    agent, frames = tiny_agent(), film(0, 3)
    with running(agent, tmp_path) as server, Raw(server.address, {"answer": "classes"}) as client:
        got = []
        for step, frame in enumerate(frames):
            for wrong in (step + 1, step - 1 if step else 7):
                answer = client.ask(rgb(wrong, frame))
                assert (answer["code"], answer["fatal"]) == ("step", False)
                assert f"expected step {step}" in answer["message"]
            got.append(list(client.ask(rgb(step, frame))[12:]))
        assert got == expected(agent, frames, 0).tolist()


def test_the_answers_are_laid_out_as_the_page_says(tmp_path):
    agent, frames = tiny_agent(), film(0, 2)
    agent.info["fps"] = 12.5
    with running(agent, tmp_path) as server, Raw(server.address, {}) as client:
        told = client.welcome
        assert told["fps"] == 12.5
        assert (told["type"], told["protocol"], told["image_size"], told["vector_size"]) == ("welcome", 1, 32, 0)
        assert [len(head["values"]) for head in told["heads"]] == list(agent.codec.sizes)
        assert told["actions"] == agent.codec.to_dict()
        answer = client.ask(rgb(0, frames[0]))
        assert set(answer) == {"type", "step", "log_prob", "action"}
        assert (answer["type"], answer["step"]) == ("action", 0)
        assert client.ask(b'{"type": "reset"}') == {"type": "ready", "episode": 1}
        assert client.ask(b'{"type": "reset"}') == {"type": "ready", "episode": 1}  # it has no frame yet
        assert client.ask(b'{"type": "reset", "episode": 9}') == {"type": "ready", "episode": 9}
        with Raw(server.address, {"answer": "classes"}) as other:
            answer = other.ask(rgb(0, frames[0]))
            assert answer[:8] == bytes.fromhex("02 00 1000 00000000")
            assert len(answer) == 12 + 16
        stats = client.ask(b'{"type": "stats"}')
        assert (stats["frames"], stats["steps"], stats["clients"]["now"] >= 1) == (2, 2, True)
        assert stats["latency_ms"]["p50"] <= stats["latency_ms"]["p95"] <= stats["latency_ms"]["p99"]


@pytest.mark.parametrize(
    ("first", "code"),
    [
        (b"\x00garbage", "malformed"),
        (b"{not json", "malformed"),
        (b"", "malformed"),
        (b'{"type": "hello", "protocol": 2}', "version"),
        (b'{"type": "reset"}', "order"),
        (b'{"type": "hello", "protocol": 1, "frame_size": 2000}', "malformed"),
        (rgb(0, film(0, 1)[0]), "order"),
        (b"{" + b" " * 70000, "too_large"),
    ],
)
def test_who_begins_wrong_is_told_why_and_let_go(tmp_path, first, code):
    agent = tiny_agent()
    with running(agent, tmp_path) as server, Client(server.address, seed=4, answer="classes") as other:
        with Raw(server.address) as client:
            answer = client.ask(first)
            assert (answer["type"], answer["code"], answer["fatal"]) == ("error", code, True)
            assert client.read() is None
        plays_right(other, agent, 4)


@pytest.mark.parametrize(
    "message", [b"\x63", b'{"type": "hello", "protocol": 1}', b'{"type": "reset", "episode": "a"}']
)
def test_who_goes_on_wrong_is_told_why_and_let_go(tmp_path, message):
    with running(tiny_agent(), tmp_path) as server, Raw(server.address, {}) as client:
        assert client.ask(message)["fatal"]
        assert client.read() is None


def test_a_message_that_says_it_is_huge_is_not_waited_for(tmp_path):
    with running(tiny_agent(), tmp_path, Limits(clients=2, frame=64)) as server, Raw(server.address, {}) as client:
        client.socket.sendall((3 * 4096 * 4096).to_bytes(4, "little"))
        assert client.read()["code"] == "too_large"
        assert client.read() is None


def test_clients_that_vanish_in_the_middle_leave_their_slots(folder):
    agent = tiny_agent()
    with running(agent, folder, Limits(clients=3)) as server, Client(server.address, answer="classes") as other:
        for turn in range(6):
            client = until_welcome(server)
            client.act(film(turn, 1)[0])
            hang_up(client, half=turn % 2 == 0)
            plays_right(other, agent, 0, frames=film(turn, 4))
        until_welcome(server).close()


def hang_up(client, half):
    """Ends a connection without a word, or after half a message."""
    unix = hasattr(client._wire, "_socket")
    connection = client._wire._socket if unix else client._wire._connection.socket
    if half:
        connection.sendall(HALF_UNIX if unix else HALF_WEBSOCKET)
    connection.shutdown(socket.SHUT_RDWR)


HALF_UNIX = b"\x0c\x30\0\0\x01\x01"
HALF_WEBSOCKET = b"\x82\xfe\x30\x0c\0\0\0\0\x01\x01"
QUICK = Limits(clients=4, idle_timeout=2.0, message_timeout=1.5)


def test_who_says_nothing_is_let_go_and_the_others_play_on(tmp_path):
    agent = tiny_agent()
    with running(agent, tmp_path, QUICK) as server, ExitStack() as stack:
        silent = stack.enter_context(Raw(server.address))
        idle = stack.enter_context(Raw(server.address, {}))
        half = stack.enter_context(Raw(server.address, {}))
        half.socket.sendall((12 + 32 * 32 * 3).to_bytes(4, "little") + rgb(0, film(0, 1)[0])[:100])
        short = stack.enter_context(Raw(server.address, {}))
        short.socket.sendall(b"\x01\x00")
        told = {}

        def listen(name, client):
            told[name] = client.read()

        named = {"silent": silent, "idle": idle, "half": half, "short": short}
        listeners = [threading.Thread(target=listen, args=each) for each in named.items()]
        for listener in listeners:
            listener.start()
        rounds = 0
        while any(listener.is_alive() for listener in listeners):
            # On a machine that stands still for a while the busy one is late too, and is told so.
            with suppress(ProtocolError, ConnectionError), until_welcome(server, seed=1, answer="classes") as busy:
                plays_right(busy, agent, 1, steps=3)
                rounds += 1
        assert rounds
        assert {name: answer["code"] for name, answer in told.items()} == {
            "silent": "idle",
            "idle": "idle",
            "half": "half",
            "short": "half",
        }


def test_half_a_message_over_a_websocket_is_not_waited_for_either():
    with running(tiny_agent(), None, QUICK) as server:
        client = Client(server.address)
        connection = client._wire._connection
        connection.socket.sendall(HALF_WEBSOCKET)
        answer = json.loads(connection.recv(PATIENCE))
        assert (answer["type"], answer["code"]) == ("error", "half")
        client.close()


def test_a_client_that_sends_ahead_is_not_taken_for_one_that_sends_half_a_message(monkeypatch):
    """Each read ends inside the next message, whose age is told from the read in which it began."""
    clock = [0.0]
    monkeypatch.setattr(websocket, "now", lambda: clock[0])
    asked = b"\x81\x90\0\0\0\0" + b'{"type":"stats"}'
    with running(tiny_agent()) as server, Client(server.address) as client:
        connection, (session,) = client._wire._connection, server.service.sessions
        rest = asked
        for turn in range(1, 6):
            clock[0] = float(turn)
            connection.socket.sendall(rest + asked[:9])
            rest = asked[9:]
            assert json.loads(connection.recv(PATIENCE))["type"] == "stats"
            assert session.channel.half_since == turn
        clock[0] = 9.0
        connection.socket.sendall(rest[:4])
        connection.socket.sendall(rest[4:])
        assert json.loads(connection.recv(PATIENCE))["type"] == "stats"
        assert session.channel.half_since is None


def test_who_does_not_read_is_let_go_and_fills_no_memory(tmp_path):
    agent = tiny_agent()
    with (
        running(agent, tmp_path, Limits(clients=4, message_timeout=1.5)) as server,
        Client(server.address, seed=2, answer="classes") as other,
    ):
        stalled = Raw(server.address, {})
        stalled.socket.settimeout(0.2)
        asked = (16).to_bytes(4, "little") + b'{"type":"stats"}'
        sent = 0
        try:
            while sent < 1 << 26:
                sent += stalled.socket.send(asked * 1000)
        except OSError:  # it takes no more: the server has stopped reading, or hung up
            pass
        assert sent < 1 << 24
        plays_right(other, agent, 2)
        end = time.monotonic() + PATIENCE
        while len(server.service.sessions) > 1 and time.monotonic() < end:
            other.stats()
            time.sleep(0.05)
        assert server.service.stats()["errors"] == {"slow": 1}
        stalled.close()


def test_an_agent_that_fails_ends_its_clients_and_not_the_server(tmp_path, monkeypatch):
    agent = tiny_agent()
    with running(agent, tmp_path) as server:
        with Client(server.address) as client:
            with monkeypatch.context() as patch:
                patch.setattr(agent.head, "sample", lambda *_: 1 / 0)
                with pytest.raises(ProtocolError, match="the agent failed") as caught:
                    client.act(film(0, 1)[0])
            assert caught.value.code == "internal"
        with Client(server.address, answer="classes") as client:
            plays_right(client, agent, 0)


def test_an_answer_that_is_no_number_is_told_and_a_reset_mends_it(tmp_path, monkeypatch):
    agent = tiny_agent()
    sample = agent.head.sample
    with running(agent, tmp_path) as server, Client(server.address, answer="classes") as client:
        with monkeypatch.context() as patch:
            patch.setattr(agent.head, "sample", lambda *x: (sample(*x)[0], torch.full((len(x[0]),), torch.nan)))
            with pytest.raises(ProtocolError, match="new episode") as caught:
                client.act(film(0, 1)[0])
        assert not caught.value.fatal
        plays_right(client, agent, 0)


def test_web_pages_may_not_connect_unless_they_are_named():
    from websockets.exceptions import InvalidStatus
    from websockets.sync.client import connect

    with running(tiny_agent(), origins=["http://localhost:3000"]) as server:
        with pytest.raises(InvalidStatus, match="403"), connect(server.address, origin="http://a.com", proxy=None):
            pass
        for origin in ("http://localhost:3000", None):
            with connect(server.address, origin=origin, proxy=None) as connection:
                connection.send('{"type": "hello", "protocol": 1}')
                assert json.loads(connection.recv(PATIENCE))["type"] == "welcome"


def test_garbage_in_place_of_a_handshake_is_hung_up_on(capfd):
    agent = tiny_agent()
    with running(agent) as server, Client(server.address, seed=6, answer="classes") as other:
        host, port = server.address.removeprefix("ws://").split(":")
        for garbage in (b"\x00" * 100, b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01" + bytes(200) + b"\r\n\r\n"):
            with socket.create_connection((host, int(port)), 30) as raw:
                raw.sendall(garbage)
                raw.shutdown(socket.SHUT_WR)
                while raw.recv(4096):
                    pass
        plays_right(other, agent, 6)
    assert "Traceback" not in capfd.readouterr().err


def test_clients_are_told_when_the_server_stops(folder):
    with running(tiny_agent(), folder) as server:
        client = Client(server.address)
        waiting = [Client(server.address) for _ in range(3)]
    answers = [each._wire for each in (client, *waiting)]
    for wire in answers:
        told = (
            wire._connection.recv(PATIENCE)
            if hasattr(wire, "_connection")
            else wire._read(int.from_bytes(wire._read(4), "little"))
        )
        assert json.loads(told)["code"] == "stopping"
    with pytest.raises(ConnectionError):
        client.act(film(0, 1)[0])
    with pytest.raises(ConnectionError, match="no server"):
        Client(server.address)
