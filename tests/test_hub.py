"""What a machine without a network is told, and when; on addresses of this machine alone."""

import os
import socket
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import huggingface_hub
import huggingface_hub.constants
import pytest
from huggingface_hub.errors import OfflineModeIsEnabled
from huggingface_hub.utils._http import default_client_factory

import gradmem_bench
from gradmem_bench import hub


@pytest.fixture
def client(monkeypatch):
    """A function that makes a new client, as a new process would have it."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)

    def make():
        huggingface_hub.set_client_factory(default_client_factory)
        hub.wait_briefly.cache_clear()
        hub.wait_briefly()
        return huggingface_hub.get_session()

    return make


@pytest.fixture
def closed() -> str:
    """An address at which nothing listens."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{one.getsockname()[1]}"


class Answering(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self.send_response(204)
        self.end_headers()

    def log_message(self, *arguments) -> None:
        pass


def test_a_hub_that_cannot_be_connected_to_counts_as_offline_which_is_not_tried_again(client, closed):
    with pytest.raises(OfflineModeIsEnabled, match="127.0.0.1 cannot be reached: .*refused"):
        client().head(closed)


def test_a_hub_that_does_not_answer_a_connection_is_not_waited_for(client, monkeypatch):
    monkeypatch.setattr(hub, "_CONNECT_SECONDS", 0.05)
    with socket.socket() as full, socket.socket() as first, socket.socket() as second:
        # No room for a third connection: what asks for one gets no word.
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for one in (first, second):
            one.setblocking(False)
            one.connect_ex(full.getsockname())
        with pytest.raises(OfflineModeIsEnabled):
            client().head(f"http://127.0.0.1:{full.getsockname()[1]}", timeout=60)


def test_a_hub_that_has_answered_is_waited_for_as_ever(client):
    server = HTTPServer(("127.0.0.1", 0), Answering)
    thread = Thread(target=server.handle_request)
    thread.start()
    session, address = client(), f"http://127.0.0.1:{server.server_port}"
    assert session.head(address).status_code == 204
    thread.join()
    server.server_close()
    with pytest.raises(Exception) as lost:
        session.head(address)
    # What huggingface_hub tries again.
    assert type(lost.value).__name__ in ("ConnectError", "RemoteProtocolError")


def test_without_a_network_a_mistyped_name_is_told_at_the_first_attempt(closed, tmp_path):
    variables = {"HF_ENDPOINT": closed, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    path = os.pathsep.join([str(Path(gradmem_bench.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    given = ["run", "--method=full_kv", "--task=kv_small", "--backbone=gtp2", "--dry-run"]
    script = (
        "import runpy, sys, time\n"
        "def never(seconds): raise AssertionError(f'waited {seconds} s')\n"
        "time.sleep = never\n"
        f"sys.argv = ['gradmem-bench', *{given}]\n"
        "runpy.run_module('gradmem_bench', run_name='__main__')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | variables | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: The backbone 'gtp2' is no folder") and done.stderr.count("\n") == 1
