"""`make faults`: every fault under load, what it cost, and whether anything was lost, wrong or left behind."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.chats import Chats, add_generation, expected_texts
from tests.faults import streams
from tests.faults.faults import AUDIENCE, FAULTS, ISSUER, many_connections, public_key
from tests.rig import Load, Rig, table

_RECOVERED_S, _RECOVERED_SHORT_S = 10.0, 90.0  # the short form runs in CI, beside whatever else runs there
_CALM_S = 1.0
_SPARE = {"threads": 6, "files": 24, "processes": 0, "memory_mb": 40}


def run_gateway(*, short):
    """Drive every fault of texts that are answered whole; returns the rows of the table, each with its verdict."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="accel-faults-") as folder:
        key = Path(folder) / "public.pem"
        key.write_bytes(public_key())
        tokens = {"JWT_ISSUER": ISSUER, "JWT_AUDIENCE": AUDIENCE, "JWT_PUBLIC_KEY_FILE": str(key)}
        settings = {f"ACCEL_{name}": value for name, value in tokens.items()}
        with Rig(folder, before="tests.faults.stepped", **settings) as rig:
            rig.wait_until(True)
            with Load(rig):
                time.sleep(_CALM_S)
            many_connections(rig, short)  # what the allocator once took for them it keeps: no leak, so it counts before
            before = rig.footprint()
            for name, fault, allowed in FAULTS:
                if name == "SIGTERM":
                    rows.append(_leaks(before, rig))
                rows.append(_drive(rig, name, fault, allowed, short, Load(rig)))
        rows.append(_restart(folder, settings))
    return rows


def run_streams(*, short):
    """Drive the faults of texts that are streamed; rows as those of `run`."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="accel-faults-") as folder:
        (Path(folder) / "model_repository").mkdir()
        texts = expected_texts(add_generation(folder, Path(folder) / "model_repository"))
        with Rig(folder, ACCEL_DRAIN_S=str(streams.DRAIN_S)) as rig:
            rig.wait_until(True)
            with Chats(rig, texts):
                time.sleep(_CALM_S)
            before = rig.footprint()
            for name, fault, allowed in streams.FAULTS:
                if fault is streams.end_gently:
                    rows.append(_leaks(before, rig))
                rows.append(_drive(rig, name, fault, allowed, short, Chats(rig, texts)))
    return rows


def _drive(rig, name, fault, allowed, short, load):
    problem, recovery = "", 0.0
    rig.wait_until(True)  # Triton may have ended a moment after the fault before this one
    with load:
        time.sleep(_CALM_S / 2)
        try:
            recovery = fault(rig, short)
        except AssertionError as error:
            problem = str(error) or "it did not go as it should"
        time.sleep(_CALM_S / 2)
    tally = load.tally
    strange = set(tally.refused) - allowed
    if strange:
        problem = problem or f"refused {sorted(strange)}"
    if tally.lost:
        problem = problem or f"lost {dict(tally.lost)}"
    if tally.wrong or recovery > (_RECOVERED_SHORT_S if short else _RECOVERED_S) or not tally.answered:
        problem = problem or "wrong, late, or no answers"
    name = f"{name} ({fault.held})" if hasattr(fault, "held") else name
    counts = tally.sent, tally.answered, tally.refused.total(), tally.lost.total(), tally.wrong
    return _row(name, *counts, recovery, problem)


def _row(fault, sent, answered, refused, lost, wrong, recovery, problem):
    return {
        "fault": fault,
        "requests": sent,
        "answered": answered,
        "refused": refused,
        "lost": lost,
        "wrong": wrong,
        "recovery s": f"{recovery:.1f}" if isinstance(recovery, float) else recovery,
        "verdict": problem or "ok",
    }


def _leaks(before, rig):
    """What there is more of than before the faults, once all is quiet."""
    until = time.monotonic() + 60
    while True:
        now = rig.footprint()
        more = {name: now[name] - before[name] for name in now}
        grown = [f"{count:+.0f} {name}" for name, count in more.items() if count > _SPARE[name]]
        if not grown or time.monotonic() > until:
            break
        time.sleep(0.5)
    said = ", ".join(f"{count:+.0f} {name}" for name, count in more.items())
    return _row(f"left behind: {said}", "", "", "", "", "", "", ", ".join(grown))


def _restart(folder, settings):
    """The state is there again after the gateway was."""
    with Rig(folder, **settings) as rig:
        rig.wait_until(True)
        kept = rig.ask("GET", "/v1/experiments/disk").json()
        done = [entry["outcome"] for entry in rig.ask("GET", "/v1/audit").json()["data"]]
        problem = "" if kept.get("status") == "rolled_back" and "done" in done else f"the state is {kept}"
        return _row("started again: state kept", "", "", "", "", "", "", problem)


def verdict(rows):
    """One line."""
    failed = [row["fault"] for row in rows if row["verdict"] != "ok"]
    sent = sum(row["requests"] or 0 for row in rows)
    if failed:
        return f"FAILED: {'; '.join(failed)}"
    slowest_s = max(float(row["recovery s"] or 0) for row in rows)
    within = f"recovered within {slowest_s:.1f} s"
    return f"ok: {sent:,} requests under {len(FAULTS) + len(streams.FAULTS)} faults, none lost, none wrong, {within}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="as in CI")
    parser.add_argument("--streams", action="store_true", help="only those of texts that are streamed")
    asked = parser.parse_args()
    results = ([] if asked.streams else run_gateway(short=asked.short)) + run_streams(short=asked.short)
    table(results)
    print(verdict(results))
    sys.exit(any(row["verdict"] != "ok" for row in results))
