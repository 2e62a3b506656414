"""The Unix socket's file: who may connect, whose it is, and what is left of it."""

from __future__ import annotations

import os
import socket
import stat

import pytest

from lit_align.errors import UserError
from lit_align.serving.client import Client
from lit_align.serving.unix import bind
from tests.helpers import tiny_agent
from tests.serving.helpers import film, running


def test_only_its_owner_may_connect_and_it_is_gone_afterwards(tmp_path):
    with running(tiny_agent(), tmp_path):
        assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o600
    assert not (tmp_path / "s").exists()


def test_the_socket_of_a_dead_server_is_replaced(tmp_path):
    bind(str(tmp_path / "s")).close()  # what a server that was killed leaves
    assert (tmp_path / "s").exists()
    with running(tiny_agent(), tmp_path) as server, Client(server.address) as client:
        client.act(film(0, 1)[0])


def test_the_socket_of_a_live_server_is_not(tmp_path):
    with running(tiny_agent(), tmp_path) as server:
        with pytest.raises(UserError, match="another server"):
            bind(str(tmp_path / "s"))
        with Client(server.address) as client:
            client.act(film(0, 1)[0])


def test_a_server_leaves_the_socket_of_another_alone(tmp_path):
    with running(tiny_agent(), tmp_path):
        os.unlink(tmp_path / "s")
        other = bind(str(tmp_path / "s"))
    assert (tmp_path / "s").exists()
    other.close()


def test_what_is_no_socket_is_not_touched(tmp_path):
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(UserError, match="no socket"):
        bind(str(tmp_path / "notes"))
    assert (tmp_path / "notes").read_text() == "mine"


@pytest.mark.parametrize("name", ["missing/s", "x" * 200])
def test_a_path_that_cannot_be_is_told(tmp_path, name):
    with pytest.raises(UserError, match="cannot be made"):
        bind(str(tmp_path / name))


def test_a_socket_of_another_kind_counts_as_one_of_a_live_server(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(str(tmp_path / "s"))
        with pytest.raises(UserError, match="another server"):
            bind(str(tmp_path / "s"))
