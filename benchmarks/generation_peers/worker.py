"""One peer in a process of its own: it opens a model, warms up, and takes all requests at once.

    python worker.py llama_cpp < load.json

The load is JSON with ``model``, ``rows``, ``cache_tokens`` and ``requests`` (token ids and a forced length each); the
answer is one line of JSON with processor and wall seconds, the token ids, and when each came.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Requests = Sequence[Sequence[Any]]
Got = Callable[[int, Sequence[int]], None]
Run = Callable[[Requests, Got], None]

_ANSWER, sys.stdout = sys.stdout, sys.stderr  # libraries print


def llama_cpp(load: dict[str, Any]) -> Run:
    """Its server's own loop, in this process: slots that share one cache, prompts joined to the running batch."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = load["model"]
    params.n_parallel = load["rows"]
    params.n_ctx = load["cache_tokens"]
    params.kv_unified = True
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.verbosity = 0
    server = xllamacpp.Server(params)

    def one(index: int, ids: list[int], count: int, got: Got) -> None:
        def chunk(answer: Any) -> None:
            for each in answer if isinstance(answer, list) else [answer]:
                tokens = each.get("tokens") or each.get("__verbose", {}).get("tokens")
                if tokens:
                    got(index, tokens)

        wanted = {
            "prompt": ids, "max_tokens": count, "temperature": 0, "ignore_eos": True, "stream": True,
            "return_tokens": True, "cache_prompt": False, "verbose": True,
        }  # fmt: skip
        server.handle_completions(wanted, chunk)

    def run(requests: Requests, got: Got) -> None:
        threads = [
            threading.Thread(target=one, args=(index, ids, count, got)) for index, (ids, count) in enumerate(requests)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    return run


def openvino_genai(load: dict[str, Any]) -> Run:
    """Its continuous batching with nothing set but the number of threads."""
    import openvino
    import openvino_genai

    with tempfile.TemporaryDirectory() as folder:
        for kind in ("xml", "bin"):
            Path(folder, f"openvino_model.{kind}").symlink_to(Path(load["model"], f"model.{kind}"))
        scheduler = openvino_genai.SchedulerConfig()
        pipeline = openvino_genai.ContinuousBatchingPipeline(folder, scheduler, "CPU", {"INFERENCE_NUM_THREADS": 1})

    def run(requests: Requests, got: Got) -> None:
        handles = {}
        for index, (ids, count) in enumerate(requests):
            settings = openvino_genai.GenerationConfig(
                max_new_tokens=count, min_new_tokens=count, ignore_eos=True, eos_token_id=0, apply_chat_template=False
            )
            handles[index] = pipeline.add_request(index, openvino.Tensor(np.array([ids], dtype=np.int64)), settings)
        while pipeline.has_non_finished_requests():
            pipeline.step()
            for index, handle in handles.items():
                while handle.can_read():
                    for output in handle.read().values():
                        got(index, output.generated_ids)

    return run


def onnxruntime_genai(load: dict[str, Any]) -> Run:
    """Its engine, as many requests at a time as there are rows: the next begins where one ends."""
    import onnxruntime_genai as og

    config = og.Config(load["model"])
    config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": 1}}}}))
    engine = og.Engine(og.Model(config))
    buffer = engine.create_event_buffer(64)

    def begin(ids: list[int], count: int) -> Any:
        asked = og.RequestOptions()
        asked.set_max_session_tokens(len(ids) + count)
        request = engine.create_request(options=asked)
        options = og.TurnOptions(request)
        options.set_do_sample(False)
        options.set_min_generated_tokens(count)
        options.set_max_generated_tokens(count)
        request.begin_turn(np.array(ids, dtype=np.int32), options)
        return request

    def run(requests: Requests, got: Got) -> None:
        waiting = list(enumerate(requests))
        live: dict[Any, int] = {}
        while waiting or live:
            while waiting and len(live) < load["rows"]:
                index, (ids, count) = waiting.pop(0)
                live[begin(ids, count)] = index
            for event in engine.run(buffer):
                if event.flags & og.EngineEventFlags.FAILED:
                    raise RuntimeError(f"the engine failed: {event.error_code}")
                if event.flags & og.EngineEventFlags.TOKEN:
                    got(live[event.request], [int(event.token)])
                if event.flags & og.EngineEventFlags.TURN_FINISHED:
                    del live[event.request]
                    event.request.close()

    return run


def main() -> None:
    """Open, warm up, run, and print what was measured."""
    load = json.load(sys.stdin)
    requests = load["requests"]
    run: Run = {each.__name__: each for each in (llama_cpp, openvino_genai, onnxruntime_genai)}[sys.argv[1]](load)
    run([[requests[0][0][:8], 2]], lambda *_: None)
    ids: list[list[int]] = [[] for _ in requests]
    times: list[list[float]] = [[] for _ in requests]

    def got(index: int, tokens: Sequence[int]) -> None:
        ids[index] += map(int, tokens)
        times[index] += [time.perf_counter() - began] * len(tokens)

    cpu, began = time.process_time(), time.perf_counter()
    run(requests, got)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - began
    print(json.dumps({"cpu_s": cpu, "wall_s": wall, "ids": ids, "times": times}), file=_ANSWER, flush=True)
    os._exit(0)  # their threads would keep the process


if __name__ == "__main__":
    main()
