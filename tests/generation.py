"""Runs requests through an engine to their end, and what transformers' own ``generate`` gives for the same prompts."""

from __future__ import annotations

import time

import torch

from accel_lib.generate import Sampling
from accel_lib.generate.scheduler import Scheduler

LONGEST_WAIT_S = 60


def greedy(max_tokens=12, **options):
    return Sampling(max_tokens=max_tokens, temperature=0, **options)


def collect(engine, until=None, *, events=None):
    """Step until every request has ended, or `until()`; returns the events of each key, in order."""
    events = {} if events is None else events
    last = time.monotonic() + LONGEST_WAIT_S
    while not (until() if until else engine.idle):
        assert time.monotonic() < last, "the engine gives no more events"
        for event in engine.step():
            events.setdefault(event.key, []).append(event)
    return events


def ids_of(events):
    return [token for event in events for token in event.token_ids]


def run(engine, requests):
    """Add all of ``{key: (prompt, sampling)}`` at once; returns each key's token ids."""
    scheduler = engine if isinstance(engine, Scheduler) else Scheduler(engine)
    for key, (prompt, sampling) in requests.items():
        scheduler.add(key, prompt, sampling)
    events = collect(scheduler)
    assert not [event.error for each in events.values() for event in each if event.error]
    return {key: ids_of(events[key]) for key in requests}


def reference(model, prompt, max_tokens=12, **options):
    """Greedy ids by transformers' ``generate``, a prompt alone."""
    ids = model.network.generate(
        torch.tensor([prompt]), max_new_tokens=max_tokens, do_sample=False, pad_token_id=0, **options
    )
    return ids[0, len(prompt) :].tolist()
