"""The benchmark's verdict: what it calls reached and missed, and that the committed table is the one it writes."""

import importlib
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
KEPT = sorted((ROOT / "benchmarks" / "results").glob("*-two-cores.json"))


@pytest.fixture
def report(monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    return importlib.import_module("benchmarks.encoders.report")


def served(**changed):
    """Three rounds of infinity, naive and ours; `changed` gives ours other rates, p95 or p50 at every concurrency."""
    rows = []
    for clients in (1, 8, 32, 64, 256):
        theirs = {"concurrency": clients, "rate": 100.0, "p95_ms": 50.0, "p50_ms": 10.0, "how": "", "cosine": 1.0}
        ours = theirs | {"rate": 400.0, "p95_ms": 20.0, "p50_ms": 5.0} | changed
        for turn in range(3):
            rows += [theirs | {"name": name, "round": turn} for name in ("infinity", "Triton, naive")]
            rows += [ours | {"name": f"Triton, ours {precision}", "round": turn} for precision in ("FP32", "INT8")]
    return rows


def test_a_median_of_the_rounds_decides(report):
    rows = served()
    assert report.median(rows, "Triton, ours FP32", 8, "rate") == 400
    next(row for row in rows if row["name"] == "Triton, ours FP32" and row["concurrency"] == 8)["rate"] = 1.0
    assert report.median(rows, "Triton, ours FP32", 8, "rate") == 400


def test_every_served_target_is_judged(report):
    lines = report.served_verdict(served(), limit=1_000)
    assert len(lines) == 2 * (4 + 1 + 1)
    assert all(line.endswith(": reached") for line in lines)
    assert report.summary(lines) == "12 of 12 targets reached, 0 missed"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"rate": 110.0}, "FP32 over infinity at 8 clients: 1.10×, at least 2.2; p95 lower: missed by 50.0%"),
        ({"p95_ms": 100.0}, "INT8 over infinity at 32 clients: 4.00×, at least 3.5; p95 NOT lower: missed by 50.0%"),
        ({"p50_ms": 20.0}, "FP32 at one client: p50 20.0 ms, infinity 10.0 ms: missed by 50.0%"),
    ],
)
def test_what_is_missed_says_by_how_much(report, changed, said):
    assert said in report.served_verdict(served(**changed), limit=1_000)


def test_a_rate_that_falls_as_clients_come_is_missed(report):
    rows = [row | ({"rate": 300.0} if row["concurrency"] == 256 else {}) for row in served()]
    assert any("at 256 clients 75% of the rate at 8" in line and "missed" in line for line in
               report.served_verdict([r for r in rows if r["name"] != "infinity"], limit=1_000))  # fmt: skip


def test_only_a_target_beyond_the_hardware_names_the_limit(report):
    slow = served(rate=110.0)
    assert not any("FP32 matrices end" in line for line in report.served_verdict(slow, limit=1_000))
    named = [line for line in report.served_verdict(slow, limit=250) if "FP32 matrices end at 250/s" in line]
    assert len(named) == 3, "the targets at 32, 64 and 256 clients ask for 280/s, the one at 8 for 220/s"


@pytest.mark.parametrize("kept", KEPT, ids=lambda path: path.stem)
def test_the_committed_table_is_what_the_numbers_give(report, kept, tmp_path, capsys):
    results = json.loads(kept.read_text())
    report.write(results, tmp_path)
    assert (tmp_path / "bench.md").read_text() == kept.with_suffix(".md").read_text()
    assert (tmp_path / "bench.png").stat().st_size > 10_000
    assert capsys.readouterr().out.splitlines()[-1] == report.summary(report.verdict(results))
