"""NVIDIA's aiperf and `accel load` on one gateway in turns, with the same load: do they measure the same?

    python -m benchmarks.generation_cross_check
    python -m benchmarks.generation_cross_check --turns 1 --requests 12

aiperf is installed once into an environment of its own, below the cache folder. It gets the model's tokenizer from a
folder here, so it asks no hub. Both send chats of the same numbers of tokens in a closed loop, want the same forced
lengths, count tokens as the server does, and say when the first text came, what passed between tokens, and tokens/s.
The tools run on the last core, Triton and the gateway on the others: aiperf is a dozen processes, which on two shared
cores slow down what they measure. One client: answers of one length keep several clients in step or out of it, and
the time to the first token then tells whether their prompts came together, in either tool.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd

import accel_lib as accel
from accel_lib.artifact import Artifact
from accel_lib.load.streams import text_source
from accel_lib.machine import cache_dir
from accel_lib.measurement import machine_line
from benchmarks.cpu_affinity import apart
from benchmarks.gateway import started_gateway

AIPERF = "aiperf"
CLIENTS, PROMPT_TOKENS, OUTPUT_TOKENS = 1, 96, 32
OURS, THEIRS = "accel load", "aiperf"
WANTED = 0.05  # they agree within


def installed() -> Path:
    """The aiperf command, in an environment that has nothing of ours."""
    folder = cache_dir("benchmarks", "aiperf")
    command = folder / "bin" / "aiperf"
    if not command.is_file():
        print("aiperf: making its environment", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        subprocess.run([folder / "bin" / "python", "-m", "pip", "install", "-q", AIPERF], check=True)
    return command


def theirs(command: Path, url: str, key: str, tokenizer: Path, requests: int, seed: int) -> dict[str, float]:
    """Medians and rates as aiperf's JSON has them."""
    with tempfile.TemporaryDirectory(prefix="accel-aiperf-") as folder:
        asked = {
            "--model": "generation", "--url": url, "--api-key": key, "--endpoint-type": "chat", "--ui": "none",
            "--concurrency": CLIENTS, "--request-count": requests, "--warmup-request-count": 1, "--random-seed": seed,
            "--num-dataset-entries": requests + 1,  # no prompt comes twice: its beginning would be in the cache
            "--synthetic-input-tokens-mean": PROMPT_TOKENS, "--synthetic-input-tokens-stddev": 0,
            "--output-tokens-mean": OUTPUT_TOKENS, "--output-tokens-stddev": 0,
            "--tokenizer": tokenizer, "--artifact-dir": folder,
        }  # fmt: skip
        words = [str(word) for pair in asked.items() for word in pair]
        flags = ["--streaming", "--use-server-token-count"]
        flags += ["--extra-inputs", "ignore_eos:true", "--extra-inputs", "temperature:0"]
        environment = os.environ | {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
        done = subprocess.run(
            [command, "profile", *words, *flags], env=environment, capture_output=True, text=True, check=False
        )
        files = list(Path(folder).rglob("profile_export_aiperf.json"))
        if not files:
            raise SystemExit(f"aiperf said:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
        said = json.loads(files[0].read_text(encoding="utf-8"))
    return {
        "ttft_ms": said["time_to_first_token"]["p50"],
        "itl_ms": said["inter_token_latency"]["p50"],
        "tokens_per_s": said["output_token_throughput"]["avg"],
        "requests_per_s": said["request_throughput"]["avg"],
        "prompt_tokens": said["input_sequence_length"]["avg"],
        "output_tokens": said["output_sequence_length"]["avg"],
    }


def ours(url: str, key: str, artifact: Artifact, requests: int, seed: int) -> dict[str, float]:
    """The same from `generation_load_test`."""
    run = accel.generation_load_test(
        url,
        key=key,
        artifact=artifact,
        clients=CLIENTS,
        requests=requests,
        prompt_tokens=PROMPT_TOKENS + text_source(artifact).overhead_tokens,  # theirs are without the template's
        output_tokens=OUTPUT_TOKENS,
        seed=seed,
    )
    return {
        "ttft_ms": run.percentile("ttft_ms", 50),
        "itl_ms": run.percentile("itl_ms", 50),
        "tokens_per_s": run.output_tokens_per_s,
        "requests_per_s": run.requests_per_s,
        "prompt_tokens": float(run.frame["prompt_tokens"].mean()),
        "output_tokens": float(run.frame["output_tokens"].mean()),
    }


def main() -> None:
    """Take turns, print both and their ratios, and write where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--output", type=Path)
    asked = parser.parse_args()
    command = installed()
    tokenizer = accel.load_model("SmolLM2-135M-Instruct").folder
    rows = []
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(accel.serve(accel.ensure("generation"), models=["generation"]))
        url, key, gateway = stack.enter_context(started_gateway(server, "generation"))
        served = server.model("generation")
        print(stack.enter_context(apart(served, gateway)))
        for turn in range(asked.turns):
            for tool in (OURS, THEIRS) if turn % 2 == 0 else (THEIRS, OURS):
                if tool == OURS:
                    found = ours(url, key, served.artifact, asked.requests, turn)
                else:
                    found = theirs(command, url, key, tokenizer, asked.requests, turn)
                rows.append({"tool": tool, "turn": turn} | found)
                print(f"{tool}: {found}", flush=True)
    medians = pd.DataFrame(rows).groupby("tool").median(numeric_only=True).drop(columns="turn")
    medians.loc["ratio"] = medians.loc[OURS] / medians.loc[THEIRS]
    print(medians.round(3).to_string(), machine_line(), sep="\n")
    for name in ("ttft_ms", "itl_ms", "tokens_per_s"):
        off = abs(medians.loc["ratio", name] - 1)
        print(f"{'agrees' if off <= WANTED else 'DIFFERS':8}{name}: {off:.1%} apart, wanted within {WANTED:.0%}")
    if asked.output:
        found = {"machine": machine_line(), "rows": rows, "medians": medians.to_dict("index")}
        asked.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
