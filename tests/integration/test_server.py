"""A real Triton: it loads what is right, says what is wrong, and leaves nothing behind however it ends."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest

import accel_lib
from accel_lib.errors import RequestError, ServerError
from accel_lib.triton import process
from accel_lib.triton import server as server_module
from accel_lib.triton.config import ModelConfig
from accel_lib.triton.repository import write_config, write_model
from tests.tiny import TABLE, end_at_once, tiny_artifact, tiny_model, tiny_texts

pytestmark = pytest.mark.triton
TEXTS = tiny_texts(4)
EXPECTED = tiny_model().reference(TEXTS)
ECHO = Path(__file__).parent / "models" / "echo"
COURSE = Path(__file__).parents[2] / "model_repository"
OWNER = """
import os, sys, time, accel_lib
server = accel_lib.serve(sys.argv[1])
print(server.pid, flush=True)
"""
SLOW = "import time\nclass TritonPythonModel:\n    def initialize(self, args):\n        time.sleep(60)\n"


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    return tiny_artifact(tmp_path_factory.mktemp("artifact") / "tiny", TABLE)


@pytest.fixture
def impatient(monkeypatch):
    """Triton takes seconds for its own end: leave it none where the end is not what is tested."""
    monkeypatch.setattr(process, "_GRACE_S", 0.2)
    monkeypatch.setattr(server_module, "_LAST_UNLOAD_S", 0.2)


@pytest.fixture
def repository(tmp_path, artifact):
    write_model(tmp_path / "model_repository", "tiny", artifact)
    return tmp_path / "model_repository"


@pytest.fixture(scope="module")
def server(tmp_path_factory, artifact):
    folder = tmp_path_factory.mktemp("server") / "model_repository"
    write_model(folder, "tiny", artifact)
    with accel_lib.serve(folder) as running:
        yield running
        end_at_once(running)


@pytest.fixture
def owners():
    """Start Python processes that serve a repository; none outlives its test."""
    started = []

    def start(repository, then):
        command = [sys.executable, "-c", OWNER + then, str(repository)]
        pipes = dict.fromkeys(["stdin", "stdout", "stderr"], subprocess.PIPE)
        started.append(subprocess.Popen(command, **pipes, text=True))
        lines = [started[-1].stdout.readline() for _ in range(2)]
        assert lines[1].strip().isdecimal(), started[-1].stderr.read()
        return started[-1], Footprint(int(lines[1]))

    yield start
    for owner in started:
        owner.kill()
        owner.communicate()


def lives(found):
    """Whether a process runs, which may end as it is looked at."""
    try:
        return found.is_running() and found.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class Footprint:
    """What a running server holds: processes, shared memory, a folder and ports."""

    def __init__(self, pid):
        triton = psutil.Process(pid)
        self.prefix = re.search(r"shm-region-prefix-name=(\S+)", " ".join(triton.cmdline()))[1]
        self.folder = Path(f"/proc/{pid}/fd/1").readlink().parent
        self.processes = [triton.parent(), triton, *triton.children(recursive=True)]
        self.listening = [c.laddr for c in triton.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
        self.taken_at = time.time()
        assert {"processes", "shared memory", "folder", "ports"} == set(self.left())
        assert any("stub" in each.name() for each in self.processes)

    def left(self):
        held = {
            "processes": [each for each in self.processes if lives(each)],
            "shared memory": list(Path("/dev/shm").glob(f"{self.prefix}*")),
            "folder": [self.folder] if self.folder.exists() else [],
            "ports": [address for address in self.listening if accepts(address) and not self.taken_over(address)],
        }
        return {kind: found for kind, found in held.items() if found}

    def taken_over(self, address):
        """Whether a process that started later listens there now: the system may give it a port that became free."""
        found = [c.pid for c in psutil.net_connections("tcp") if c.laddr == address and c.status == psutil.CONN_LISTEN]
        try:
            return bool(found) and all(pid and psutil.Process(pid).create_time() > self.taken_at for pid in found)
        except psutil.NoSuchProcess:  # it ended as it was looked at
            return not accepts(address)

    def left_after(self, seconds):
        until = time.monotonic() + seconds
        while self.left() and time.monotonic() < until:
            time.sleep(0.1)
        return self.left()


def accepts(address):
    with socket.socket() as client:
        return client.connect_ex((address.ip.removeprefix("::ffff:"), address.port)) == 0


def answers(served):
    return np.allclose(served.encode(TEXTS), EXPECTED, atol=1e-6)


def test_nothing_is_left_after_stop_nor_after_an_error_in_the_block(repository, monkeypatch):
    server = accel_lib.serve(repository)
    stopped = Footprint(server.pid)
    server.stop()
    assert stopped.left() == {}
    server.stop()
    assert (repr(server), server.pid, server.running) == ("Triton, stopped", 0, False)
    assert "successfully loaded 'tiny'" in server.log
    monkeypatch.setattr(process, "_GRACE_S", 0.2)  # now the end is a forced one
    monkeypatch.setattr(server_module, "_LAST_UNLOAD_S", 0.2)
    with pytest.raises(KeyError, match="mine"), accel_lib.serve(repository) as server:
        failed = Footprint(server.pid)
        raise KeyError("mine")
    assert failed.left() == {}


def test_what_was_refused_to_load_does_not_hold_up_the_end(repository):
    with accel_lib.serve(repository) as server, pytest.raises(ServerError, match="unable to find backend library"):
        server.load("tiny", server.config("tiny").replace(backend="pythn"))
    assert "All models are stopped" in server.log
    assert "Exit timeout expired" not in server.log  # Triton counts it as live for ever


def test_a_request_in_flight_when_the_server_is_stopped_gets_its_response(tmp_path):
    shutil.copytree(ECHO, tmp_path / "models" / "echo")
    server = accel_lib.serve(tmp_path / "models")
    with ThreadPoolExecutor() as pool:
        waits = pool.submit(server.model("echo").infer, [np.array([-1003, 7])])  # for a second
        time.sleep(0.2)
        server.stop()
        assert waits.result(10).tolist() == [[-1003.0, 7.0]]


@pytest.mark.parametrize(
    ("then", "number"),
    [
        ("time.sleep(60)", signal.SIGKILL),
        ("time.sleep(60)", signal.SIGINT),
        ("sys.stdin.readline(); os._exit(3)", None),
    ],
    ids=["killed", "interrupted", "exits"],
)
def test_nothing_is_left_however_its_owner_ends(repository, owners, then, number):
    owner, footprint = owners(repository, then)
    if number:
        owner.send_signal(number)
    else:
        owner.stdin.write("\n")
        owner.stdin.flush()
    assert owner.wait(60) != 0
    assert footprint.left_after(60) == {}


@pytest.mark.parametrize("victim", ["tritonserver", "watchdog"])
def test_a_killed_server_leaves_nothing_and_says_that_it_is_gone(repository, victim):
    server = accel_lib.serve(repository)
    footprint, served = Footprint(server.pid), server.model("tiny")
    triton = psutil.Process(server.pid)
    (triton if victim == "tritonserver" else triton.parent()).kill()
    deadline = time.monotonic() + 60
    while server.running and time.monotonic() < deadline:
        time.sleep(0.1)
    with pytest.raises(RequestError, match=r"cannot be reached[\s\S]*accel_lib\.serve\("):
        served.encode(TEXTS)
    assert repr(server) == "Triton, stopped"
    with accel_lib.serve(repository) as again:
        assert footprint.left_after(60) == {}
        assert answers(again.model("tiny"))
        os.kill(again.pid, signal.SIGKILL)


def test_a_fork_of_the_owner_that_exits_leaves_the_server(repository, owners):
    owner, footprint = owners(repository, "child = os.fork()\nif not child: sys.exit()\nos.waitpid(child, 0)\ninput()")
    time.sleep(1)
    assert len(footprint.left()) == 4
    owner.send_signal(signal.SIGINT)
    assert footprint.left_after(60) == {}


@pytest.mark.usefixtures("impatient")
def test_a_second_serve_replaces_the_first(repository):
    first = accel_lib.serve(repository)
    footprint = Footprint(first.pid)
    others = process.free_ports(process.Ports())  # none of the first's, which may become free and be given away
    with accel_lib.serve(repository, http_port=others.http, grpc_port=others.grpc) as second:
        assert footprint.left() == {}
        assert not first.running
        assert answers(second.model("tiny"))
        with pytest.raises(RequestError, match="cannot be reached"):
            first.model("tiny")


def test_a_repository_that_another_process_serves_is_refused(repository, owners):
    owner, footprint = owners(repository, "input()")
    with pytest.raises(ServerError, match=rf"another process[\s\S]*process {owner.pid}\n.*kill {owner.pid}"):
        accel_lib.serve(repository)
    assert len(footprint.left()) == 4
    owner.kill()
    os.waitid(os.P_PID, owner.pid, os.WEXITED | os.WNOWAIT)  # dead, and not yet reaped, as a kernel at its restart
    with accel_lib.serve(repository) as server:
        assert answers(server.model("tiny"))
        os.kill(server.pid, signal.SIGKILL)


@pytest.mark.usefixtures("impatient")
def test_two_servers_answer_at_once_also_one_whose_thread_has_ended(server, repository):
    started = []
    thread = threading.Thread(target=lambda: started.append(accel_lib.serve(repository)))
    thread.start()
    thread.join()
    with started[0] as other:
        time.sleep(0.3)
        assert answers(server.model("tiny"))
        assert answers(other.model("tiny"))
        urls = [(each.http_url, each.grpc_url, each.metrics_url) for each in (server, other)]
        assert not set(urls[0]) & set(urls[1])


def test_it_listens_on_the_loopback_interface_only(server):
    urls = server.http_url, server.grpc_url, server.metrics_url
    listening = Footprint(server.pid).listening
    assert {address.ip.removeprefix("::ffff:") for address in listening} == {"127.0.0.1"}
    assert {f"127.0.0.1:{address.port}" for address in listening} == {re.search(r"[\d.]+:\d+", url)[0] for url in urls}


@pytest.mark.parametrize("service", ["http", "grpc", "metrics"])
def test_a_taken_port_is_refused_with_who_has_it(repository, service):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        who = rf"Port {port} is taken\.\n  seen: \S+, process {os.getpid()}\n.*serve\({service}_port=0\)"
        with pytest.raises(ServerError, match=who):
            accel_lib.serve(repository, **{f"{service}_port": port})


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("code", [SLOW, "import os\nos._exit(1)\n"], ids=["too slow", "ends"])
def test_a_model_that_does_not_come_up_ends_the_start_and_leaves_nothing(repository, code):
    (repository / "tiny" / "1" / "model.py").write_text(code)
    before = psutil.Process().children(recursive=True)
    with pytest.raises(ServerError, match=r"not ready in time[\s\S]*timeout_s=300|tiny did not load"):
        accel_lib.serve(repository, timeout_s=2)
    assert psutil.Process().children(recursive=True) == before


def test_a_repository_that_is_none_is_refused(tmp_path):
    with pytest.raises(ServerError, match=r"no such model repository\.\n  seen: nowhere\n"):
        accel_lib.serve(tmp_path / "nowhere")


@pytest.mark.usefixtures("impatient")
def test_a_model_that_is_not_built_is_left_out_with_a_line_or_refused_by_name(tmp_path, capsys):
    ignore = shutil.ignore_patterns("artifact", ".accel.lock")
    repository = shutil.copytree(COURSE, tmp_path / "model_repository", ignore=ignore)
    (repository / "sentiment").rename(repository / "mine")
    (repository / "mine" / "config.pbtxt").unlink()
    write_config(repository / "mine", ModelConfig(name="mine"))
    with accel_lib.serve(repository) as server:
        assert repr(server) == "no model loaded yet"
        with pytest.raises(ServerError, match=r'fix:  accel_lib\.ensure\("embedding"\)'):
            server.load("embedding")
    lines = capsys.readouterr().out.splitlines()
    missing = "is left out: Versions 1 and 2 have no artifact on this machine. To build it:"
    assert f'embedding {missing} accel_lib.ensure("embedding")' in lines
    assert f'mine {missing} server.add("mine", artifact, version=1)' in lines
    with pytest.raises(ServerError, match=r"have no artifact[\s\S]*server\.add"):
        accel_lib.serve(repository, models=["mine"])


@pytest.mark.usefixtures("impatient")
def test_a_corrupt_configuration_ends_the_start_and_leaves_nothing(repository):
    (repository / "tiny" / "config.pbtxt").write_text('name: "tiny"\nbackend: python\n')
    before = psutil.Process().children(recursive=True)
    with pytest.raises(ServerError, match=r"line 'backend: python'[\s\S]*fix line 2 of tiny/config\.pbtxt"):
        accel_lib.serve(repository)
    assert psutil.Process().children(recursive=True) == before
