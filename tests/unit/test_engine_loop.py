"""The threads around an engine: clients that leave, and engines that die, hang or refuse."""

import ctypes
import queue
import threading
import time
from typing import Any

import pytest

from accel_lib.errors import EngineError, RequestError
from accel_lib.generate import Event, Sampling, Stats
from accel_lib.generate.loop import EngineLoop, Request

LONGEST_S = 20


class Counting:
    """An engine that counts for every request; a prompt of 13 kills it, one of 14 makes it hang, 15 is refused."""

    def __init__(self):
        self.live = {}
        self.closed = False

    def add(self, key, ids, sampling):
        if ids == [15]:
            raise RequestError("refused", fix="another")
        self.live[key] = [ids, 0, sampling.max_tokens]

    def cancel(self, key):
        if key in self.live:
            self.live[key][2] = -1

    def step(self):
        time.sleep(0.002)
        events = []
        for key, (ids, count, most) in list(self.live.items()):
            if ids == [13]:
                raise EngineError("dead", fix="open another")
            if ids == [14]:
                time.sleep(2)
            self.live[key][1] = count + 1
            finish = "cancelled" if most < 0 else "length" if count + 1 == most else None
            events.append(Event(key=key, token_ids=() if most < 0 else (count,), finish=finish))
            if finish:
                del self.live[key]
        return events

    def stats(self):
        facts = {"waiting": 0, "cache_use": 0.0, "steps": 0, "prompt_tokens": 0, "cached_tokens": 0}
        return Stats(running=len(self.live), generated_tokens=0, **facts)

    def close(self):
        self.closed = True


class Client:
    def __init__(self):
        self.events = queue.SimpleQueue()
        self.gone = False

    def send(self, event):
        self.events.put(event)

    def cancelled(self):
        return self.gone

    def rest(self):
        """Return what still comes, to the end."""
        found = [self.events.get(timeout=LONGEST_S)]
        while not found[-1].ended:
            found.append(self.events.get(timeout=LONGEST_S))
        return found


@pytest.fixture
def made():
    return []


@pytest.fixture
def given_up():
    return threading.Event()


@pytest.fixture
def loop(made, given_up):
    def make():
        made.append(Counting())
        return made[-1]

    running = EngineLoop(make, watchdog_s=0.5, give_up=given_up.set)
    yield running
    running.close()


def ask(loop, key, ids=(1,), most=5):
    client = Client()
    request = Request(key=key, prompt_ids=list(ids), sampling=Sampling(max_tokens=most), receiver=client)
    loop.add(request)
    return client


def ids_of(events):
    return [token for event in events for token in event.token_ids]


def test_requests_get_their_own_tokens_in_order_and_one_end(loop):
    clients = {f"{most}": ask(loop, f"{most}", most=most) for most in (1, 5, 40)}
    for most, client in clients.items():
        events = client.rest()
        assert ids_of(events) == list(range(int(most)))
        assert events[-1].finish == "length"


class Holding(Counting):
    """Keeps Python's lock for all of a step, as OpenVINO does, and notes how many events had come when it began."""

    def __init__(self, client):
        super().__init__()
        self.client = client
        self.seen = []

    def step(self):
        self.seen.append(self.client.events.qsize())
        ctypes.PyDLL(None).usleep(30_000)
        return super().step()


def test_a_token_is_sent_before_the_next_step_of_an_engine_that_keeps_python_s_lock():
    client = Client()
    engine: Any = Holding(client)

    loop = EngineLoop(lambda: engine, watchdog_s=20, give_up=lambda: None)
    loop.add(Request(key="a", prompt_ids=[1], sampling=Sampling(max_tokens=16), receiver=client))
    while not engine.seen or engine.live:
        time.sleep(0.01)
    loop.close()
    in_time = [step for step, seen in enumerate(engine.seen) if seen == step]
    assert len(in_time) > 8, engine.seen


def test_a_client_that_has_gone_frees_its_row_and_nobody_elses(loop, made):
    gone, stays = ask(loop, "gone", most=10**6), ask(loop, "stays", most=300)
    gone.events.get(timeout=LONGEST_S)
    gone.gone = True
    assert gone.rest()[-1].finish == "cancelled"
    assert set(made[0].live) <= {"stays"}
    assert ids_of(stays.rest()) == list(range(300))


def test_a_refused_request_gets_its_error_and_the_engine_stays(loop, made):
    stays = ask(loop, "stays", most=50)
    assert "refused" in ask(loop, "bad", ids=[15]).rest()[-1].error
    assert ids_of(stays.rest()) == list(range(50))
    assert len(made) == 1


def test_a_dead_engine_fails_what_it_held_and_is_made_again(loop, made, given_up):
    victim = ask(loop, "victim", most=10**6)
    victim.events.get(timeout=LONGEST_S)
    assert "engine failed" in ask(loop, "killer", ids=[13]).rest()[-1].error
    assert "engine failed" in victim.rest()[-1].error
    assert ids_of(ask(loop, "later").rest()) == list(range(5))
    assert [engine.closed for engine in made] == [True, False]
    assert not given_up.is_set()


@pytest.mark.slow
def test_a_step_that_never_ends_fails_its_requests_and_is_given_up(loop, given_up):
    assert "for a step" in ask(loop, "hangs", ids=[14]).rest()[-1].error
    assert given_up.wait(LONGEST_S)


def test_an_engine_that_cannot_be_made_is_its_owners_error():
    def make():
        raise EngineError("no memory", fix="more of it")

    with pytest.raises(EngineError, match="no memory"):
        EngineLoop(make, watchdog_s=1, give_up=lambda: None)


def test_closing_ends_what_runs_with_an_error(made):
    def make():
        made.append(Counting())
        return made[-1]

    loop = EngineLoop(make, watchdog_s=5, give_up=lambda: None)
    client = ask(loop, "running", most=10**6)
    client.events.get(timeout=LONGEST_S)
    loop.close()
    assert client.rest()[-1].error
    assert made[0].closed
