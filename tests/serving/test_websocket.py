"""The WebSocket's bytes: messages come out as the package's own client packed them, and noise does no harm."""

from __future__ import annotations

import asyncio
import random
import socket
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.client import ClientProtocol
from websockets.exceptions import InvalidStatus
from websockets.frames import CloseCode, Frame, Opcode
from websockets.protocol import State
from websockets.sync.client import connect
from websockets.uri import parse_uri

from lit_align.serving import websocket
from lit_align.serving.channel import WRITE_LIMIT, ChannelClosed
from lit_align.serving.client import Client
from lit_align.serving.protocol import TEXT_LIMIT
from lit_align.serving.server import connections
from lit_align.serving.service import Limits
from lit_align.serving.websocket import Connection, WebSocketListener
from tests.helpers import tiny_agent
from tests.serving.helpers import film, running

PATIENCE = 30.0
URI = parse_uri("ws://localhost/")
UPGRADE = (
    "Upgrade: websocket",
    "Connection: Upgrade",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
)


class Line(asyncio.Transport):
    """A transport without a network: what is written lies in `sent`."""

    def __init__(self) -> None:
        super().__init__()
        self.sent, self.gone, self.ended, self.reading = b"", False, False, True
        self.writes = 0

    def write(self, data: Any) -> None:
        assert not self.ended
        self.sent += bytes(data)
        self.writes += 1

    def write_eof(self) -> None:
        assert not self.ended
        self.ended = True

    def is_closing(self) -> bool:
        return self.gone

    def abort(self) -> None:
        self.gone = True

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        assert high == WRITE_LIMIT


class Ends:
    """A connection of the server, and the package's client at its other end."""

    def __init__(self) -> None:
        self.listener = WebSocketListener("unused", 0, 4)
        self.taken: list[Connection] = []
        self.listener.welcome = self.taken.append  # type: ignore[method-assign, assignment]
        self.line, self.server, self.client = Line(), Connection(self.listener), ClientProtocol(URI)
        self.server.connection_made(self.line)

    def give(self, data: bytes) -> None:
        """Bytes come to the server, as many at a time as its buffer holds."""
        while data and not self.line.gone:
            part = data[: len(self.server.get_buffer(-1))]
            self.server.get_buffer(-1)[: len(part)] = part
            self.server.buffer_updated(len(part))
            data = data[len(part) :]

    def shake_hands(self) -> None:
        self.client.send_request(self.client.connect())
        self.give(b"".join(self.client.data_to_send()))
        self.hear()
        assert self.client.state is State.OPEN
        assert self.taken == [self.server]

    def hear(self) -> list[Frame]:
        """What the client hears."""
        if self.line.sent:
            self.client.receive_data(self.line.sent)
            self.line.sent = b""
        return [event for event in self.client.events_received() if isinstance(event, Frame)]


def packed(client: ClientProtocol, message: str | bytes, cuts: list[int], pings: bool) -> bytes:
    """A message in as many frames as it is cut into, with pings between them."""
    data = message.encode() if isinstance(message, str) else message
    ends = sorted(min(cut, len(data)) for cut in cuts)
    parts = [data[a:b] for a, b in zip([0, *ends], [*ends, len(data)], strict=True)]
    for number, part in enumerate(parts):
        last = number == len(parts) - 1
        if number:
            client.send_continuation(part, fin=last)
        elif isinstance(message, str):
            client.send_text(part, fin=last)
        else:
            client.send_binary(part, fin=last)
        if pings and not last:
            client.send_ping(str(number).encode())
    return b"".join(client.data_to_send())


messages = st.lists(
    st.tuples(
        st.text(max_size=60) | st.binary(max_size=200),
        st.lists(st.integers(0, 200), max_size=3),
        st.booleans(),
    ),
    min_size=1,
    max_size=6,
)


@settings(deadline=None, max_examples=150)
@given(messages, st.lists(st.integers(1, 400), max_size=30))
def test_messages_come_out_however_they_are_cut_up(sent, sizes):
    async def talk():
        ends = Ends()
        ends.shake_hands()
        data = b"".join(packed(ends.client, *message) for message in sent)
        waiting, heard = asyncio.ensure_future(hear_all(ends.server, len(sent))), []
        for size in [*sizes, len(data)]:
            ends.give(data[:size])
            data = data[size:]
            heard += ends.hear()
            await asyncio.sleep(0)
        assert await waiting == [message for message, _, _ in sent]
        pongs = sum(frame.opcode is Opcode.PONG for frame in heard)
        assert pongs == sum(len(cuts) for _, cuts, pings in sent if pings)
        assert ends.server.half_since is None
        await asyncio.sleep(0)
        assert ends.line.reading

    asyncio.run(talk())


async def hear_all(connection: Connection, count: int) -> list[Any]:
    return [await connection.receive() for _ in range(count)]


@settings(deadline=None, max_examples=200)
@given(st.booleans(), st.lists(st.binary(max_size=300), max_size=4), st.randoms(use_true_random=False))
def test_noise_is_hung_up_on_or_waited_for_and_no_more(shaken, noise, chance):
    """Whatever comes, and wherever it ends, nothing is raised and nothing is written after the end."""

    async def talk():
        ends = Ends()
        if shaken:
            ends.shake_hands()
            whole = packed(ends.client, b"\x01" * 50, [20], True)
            noise.append(spoilt(whole, chance))
        for part in noise:
            ends.give(part)
        ends.server.eof_received()
        ends.server.connection_lost(None)
        assert not ends.listener.together
        with pytest.raises(ChannelClosed):
            await hear_all(ends.server, 1000)
        with pytest.raises(ChannelClosed):
            await ends.server.send("late")

    asyncio.run(talk())


def spoilt(data: bytes, chance: random.Random) -> bytes:
    """Bytes of which one is another, or that end early."""
    place = chance.randrange(len(data))
    return data[:place] + bytes([chance.randrange(256)]) * chance.randrange(2) + data[place + 1 :]


def request(*headers: str) -> bytes:
    return "\r\n".join(["GET / HTTP/1.1", "Host: localhost", *headers, "", ""]).encode()


@pytest.mark.parametrize("rest", [b"\x88\x80\0\0\0\0", b"\x89\x80\0\0\0\0", b"\xff" * 20])
def test_what_comes_with_a_request_that_is_refused_changes_nothing(rest):
    async def talk():
        ends = Ends()
        ends.give(request("Upgrade: websocket") + rest)
        assert not ends.taken
        assert ends.line.gone or ends.line.ended
        ends.server.eof_received()
        ends.server.connection_lost(None)

    asyncio.run(talk())


def test_a_read_full_of_pings_is_answered_in_one_piece():
    """A transport of Python 3.12 sums up what is unsent at every write."""

    async def talk():
        ends = Ends()
        ends.shake_hands()
        before = ends.line.writes
        for number in range(1000):
            ends.client.send_ping(str(number).encode())
        ends.give(b"".join(ends.client.data_to_send()))
        assert ends.line.writes == before + 1
        assert [frame.data for frame in ends.hear()] == [str(number).encode() for number in range(1000)]

    asyncio.run(talk())


def test_who_is_gone_is_hung_up_on_without_harm():
    async def talk():
        ends = Ends()
        ends.shake_hands()
        ends.server.connection_lost(None)
        ends.line.abort = lambda: pytest.fail("a transport that is closed has no loop to be aborted in")
        ends.server.abort()
        await asyncio.wait_for(ends.server.close("idle"), PATIENCE)

    asyncio.run(talk())


def test_an_answer_that_comes_after_the_rules_were_broken_leaves_the_client_time_to_read_why():
    async def talk():
        ends = Ends()
        ends.shake_hands()
        ends.client.send_binary(bytes(TEXT_LIMIT + 1))
        ends.give(b"".join(ends.client.data_to_send()))
        answer = asyncio.ensure_future(ends.server.send("late"))
        await asyncio.sleep(0.01)
        assert not answer.done()
        (told,) = ends.hear()
        assert int.from_bytes(told.data[:2], "big") == CloseCode.MESSAGE_TOO_BIG
        ends.server.connection_lost(None)
        with pytest.raises(ChannelClosed):
            await answer

    asyncio.run(talk())


def test_who_comes_in_as_the_server_stops_is_not_welcomed():
    async def talk():
        early, late = Ends(), Ends()
        early.listener.stopped = True
        early.give(request(*UPGRADE))
        assert b" 503 " in early.line.sent
        assert not early.taken
        Connection(early.listener).connection_made(line := Line())
        assert line.gone
        late.listener._talk = lambda _: pytest.fail("nobody is there to talk")
        late.shake_hands()
        late.listener.stopped = True
        talking = asyncio.ensure_future(late.listener._converse(late.server))
        await asyncio.sleep(0)
        (told,) = late.hear()
        assert told.data == (1001).to_bytes(2, "big") + b"stopping"
        late.server.connection_lost(None)
        await talking

    asyncio.run(talk())


def test_text_that_is_none_ends_the_connection_with_its_own_code_and_nothing_behind_it_is_heard():
    async def talk():
        ends = Ends()
        ends.shake_hands()
        ends.client.send_text(b"\xff\xfe")
        ends.client.send_text(b"after the end")
        ends.give(b"".join(ends.client.data_to_send()))
        (told,) = ends.hear()
        assert (told.opcode, int.from_bytes(told.data[:2], "big")) == (Opcode.CLOSE, CloseCode.INVALID_DATA)
        assert ends.line.ended
        ends.server.connection_lost(None)
        with pytest.raises(ChannelClosed):
            await ends.server.receive()

    asyncio.run(talk())


def test_who_sends_ahead_is_read_no_further_until_it_is_answered():
    async def talk():
        ends = Ends()
        ends.shake_hands()
        for number in range(4):
            ends.client.send_text(str(number).encode())
            ends.give(b"".join(ends.client.data_to_send()))
            assert ends.line.reading == (number < websocket.AHEAD)
        assert await hear_all(ends.server, 4) == ["0", "1", "2", "3"]
        assert ends.line.reading

    asyncio.run(talk())


def test_a_connection_ends_in_good_order_though_the_client_has_sent_ahead():
    async def talk():
        ends = Ends()
        ends.shake_hands()
        for _ in range(3):
            ends.client.send_text(b"ahead")
        ends.give(b"".join(ends.client.data_to_send()))
        assert not ends.line.reading
        closing = asyncio.ensure_future(ends.server.close("stopping"))
        await asyncio.sleep(0)
        assert ends.line.reading
        (told,) = ends.hear()
        assert (told.opcode, told.data) == (Opcode.CLOSE, (1001).to_bytes(2, "big") + b"stopping")
        ends.give(b"".join(ends.client.data_to_send()))
        assert ends.line.ended
        assert not closing.done()
        ends.server.connection_lost(None)
        await closing

    asyncio.run(talk())


@pytest.mark.parametrize("limit", ["OPEN_SECONDS", "CLOSE_SECONDS"])
def test_who_does_not_shake_hands_in_time_is_hung_up_on(monkeypatch, limit):
    monkeypatch.setattr(websocket, limit, 0.05)

    async def talk():
        ends = Ends()
        if limit == "CLOSE_SECONDS":
            ends.shake_hands()
            closing = asyncio.ensure_future(ends.server.close(""))
        end = time.monotonic() + PATIENCE
        while not ends.line.gone:
            assert time.monotonic() < end
            await asyncio.sleep(0.01)
        ends.server.connection_lost(None)
        if limit == "CLOSE_SECONDS":
            await closing

    asyncio.run(talk())


def test_who_pings_and_does_not_read_fills_no_memory():
    agent = tiny_agent()
    with running(agent) as server, Client(server.address) as other, socket.socket() as raw:
        host, port = server.address.removeprefix("ws://").split(":")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.settimeout(PATIENCE)
        raw.connect((host, int(port)))
        raw.sendall(request(*UPGRADE))
        assert raw.recv(4096).startswith(b"HTTP/1.1 101")
        raw.settimeout(0.5)
        ping, sent = b"\x89\xfd\0\0\0\0" + bytes(125), 0
        try:
            while sent < 1 << 26:
                sent += raw.send(ping * 500)
        except OSError:  # it takes no more
            pass
        assert sent < 1 << 25
        kept = server.call(most_kept(server))
        assert WRITE_LIMIT < kept < WRITE_LIMIT + 2 * websocket.BUFFER
        other.act(film(0, 1)[0])


async def most_kept(server: Any) -> int:
    """Bytes that wait to be sent to the client who has most of them."""
    return max(each.channel._transport.get_write_buffer_size() for each in server.service.sessions)


def test_a_message_that_is_too_large_is_told_by_code():
    with running(tiny_agent()) as server, connect(server.address, proxy=None) as client:
        client.send("{" + " " * TEXT_LIMIT)
        with pytest.raises(Exception, match="1009"):
            client.recv(PATIENCE)


def test_one_connection_more_than_there_may_be_is_told_so_and_many_more_are_not_heard():
    limits = Limits(clients=1)
    most = connections(limits.clients)
    with running(tiny_agent(), limits=limits) as server:
        host, port = server.address.removeprefix("ws://").split(":")
        silent = [socket.create_connection((host, int(port)), PATIENCE) for _ in range(most)]
        with pytest.raises(InvalidStatus, match="503"), connect(server.address, proxy=None):
            pass
        many = [socket.create_connection((host, int(port)), PATIENCE) for _ in range(most + 1)]
        assert many[-1].recv(1) == b""
        for each in (*silent, *many):
            each.close()
        end = time.monotonic() + PATIENCE
        while True:
            try:
                with Client(server.address) as client:
                    client.act(film(0, 1)[0])
                break
            except OSError:
                assert time.monotonic() < end
                time.sleep(0.02)


def test_a_conversation_that_fails_is_logged_and_ends_alone(caplog, monkeypatch):
    with running(tiny_agent()) as server, Client(server.address) as other:
        with Client(server.address) as client, monkeypatch.context() as patch:
            patch.setattr(server.service.latency, "add", lambda _: 1 / 0)
            client.act(film(0, 1)[0])
            with pytest.raises(ConnectionError):
                client.act(film(0, 1)[0])
        assert "a conversation failed" in caplog.text
        other.act(film(0, 1)[0])


def test_who_has_not_shaken_hands_is_hung_up_on_when_the_server_stops():
    with running(tiny_agent()) as server:
        host, port = server.address.removeprefix("ws://").split(":")
        raw = socket.create_connection((host, int(port)), PATIENCE)
        with Client(server.address) as client:
            client.stats()  # the one before has been taken
    assert raw.recv(1) == b""
    raw.close()
