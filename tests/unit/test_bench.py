"""The benchmark of encoders: who wins in a quality class, what is missed, and that pages say what was measured."""

import importlib
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
KEPT = sorted((ROOT / "benchmarks" / "results").glob("*-encoders.json"))


@pytest.fixture
def module(monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    return lambda name: importlib.import_module(f"benchmarks.encoders.{name}")


def alone(name, rates, quality_class="exact"):
    """A row of the part in one process."""
    quality = {"cosine_mean": 1.0, "cosine_min": 1.0, "kept": 1.0, "kept_low": 1.0, "kept_high": 1.0, "texts": 1024}
    quality |= dict.fromkeys(("accuracy_change", "accuracy_low", "accuracy_high"), 0.0)
    row = {"name": name, "ours": name.startswith("ours"), "class": quality_class, "quality": quality, "rates": rates}
    return row | {"way": "t512/2", "alone_ms": 4.0, "large_rates": [], "tried": {}}


def served(**changed):
    """Three rounds of a peer and of ours in each class; `changed` gives ours in FP32 other numbers everywhere."""
    rows = []
    for clients in (1, 8, 32, 64, 256):
        theirs = {"concurrency": clients, "rate": 100.0, "p95_ms": 50.0, "p50_ms": 10.0, "how": "", "cosine": 1.0}
        ours = theirs | {"rate": 400.0, "p95_ms": 20.0, "p50_ms": 5.0, "ours": True}
        for turn in range(3):
            rows.append(theirs | {"name": "infinity", "class": "exact", "ours": False, "round": turn})
            rows.append(ours | changed | {"name": "Triton + ours FP32", "class": "exact", "round": turn})
            rows.append(ours | {"name": "Triton + ours INT8", "class": "small", "round": turn})
            rows.append(ours | {"name": "our gateway + ours INT8", "class": "small", "round": turn, "rate": 300.0})
    return rows


def results(rows, services):
    facts = {"date": "2026-11-30", "machine": "2 cores · no GPU", "texts": "256 texts", "flop_per_text": 1e9}
    return {"facts": facts | {"quick": False}, "inprocess": rows, "served": services, "limits": {"FP32": 200.0}}


def test_who_is_in_a_stricter_class_takes_part_in_the_wider_ones(module):
    classes = module("classes")
    rows = [alone("PyTorch", [9.0]), alone("OpenVINO BF16", [5.0], "near"), alone("OpenVINO INT8", [20.0], None)]
    assert [classes.fastest(rows, wanted)["name"] for wanted in ("exact", "near", "small")] == ["PyTorch"] * 3
    assert classes.fastest(rows[1:], "exact") is None


def test_a_candidate_in_no_class_wins_nothing_and_is_shown(module):
    rows = [alone("ours FP32", [10.0]), alone("PyTorch", [10.0]), alone("OpenVINO INT8", [90.0], None)]
    lines = module("verdict").in_process(rows)
    assert len(lines) == 3
    assert all("over PyTorch 1.00×" in line for line in lines)
    table = "\n".join(module("report").inprocess_table(results(rows, [])))
    assert "| – | OpenVINO INT8 |" in table
    assert "| exact | **ours FP32** |" in table


def test_ratios_are_taken_within_a_turn(module):
    ours, theirs = alone("ours FP32", [10.0, 20.0, 40.0]), alone("PyTorch", [5.0, 10.0, 80.0])
    assert module("classes").ratio(ours, theirs) == 2.0


def test_a_class_without_any_of_ours_is_missed(module):
    lines = module("verdict").in_process([alone("ours INT8", [9.0], "small"), alone("PyTorch", [1.0])])
    assert [line.endswith(": reached") for line in lines] == [False, False, True]


def test_ours_are_held_against_bf16_too(module):
    rows = [alone("ours INT8", [14.0], "small"), alone("OpenVINO BF16", [10.0], "near")]
    assert module("verdict").in_process(rows)[-1].endswith("OpenVINO BF16 1.40×, at least 1.5: missed by 6.7%")


def test_every_served_target_is_judged(module):
    verdict = module("verdict")
    lines = verdict.served(served())
    assert len(lines) == 3 * 5 + 1
    assert verdict.summary(lines) == "15 of 16 targets reached, 1 missed"
    assert lines[-1] == "our gateway, 32 clients: 75% of the rate of Triton behind it, at least 85%: missed by 11.8%"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"rate": 120.0}, "exact, 8 clients: Triton + ours FP32 over infinity 1.20×, at least 1.5; "),
        ({"p95_ms": 100.0}, "exact, 32 clients: Triton + ours FP32 over infinity 4.00×, at least 1.5; "),
        ({"p50_ms": 20.0}, "exact, one client: Triton + ours FP32 p50 20.0 ms, infinity 10.0 ms: missed by 50.0%"),
    ],
)
def test_what_is_missed_says_by_how_much(module, changed, said):
    (line,) = [line for line in module("verdict").served(served(**changed)) if line.startswith(said)]
    assert "missed by" in line


def test_the_sentence_about_the_best_of_the_others_names_them(module):
    rows = [alone("ours FP32", [12.0]), alone("PyTorch", [8.0]), alone("OpenVINO", [10.0])]
    assert module("report").against(rows) == (
        "In one process, exact: ours FP32 encodes 1.20 times as many texts as OpenVINO; near: ours FP32 encodes 1.20 "
        "times as many texts as OpenVINO; small: ours FP32 encodes 1.20 times as many texts as OpenVINO. "
        "The others are PyTorch and OpenVINO."
    )


def test_publishing_replaces_what_stood_there(module):
    publish = module("publish")
    found = results([alone("ours FP32", [12.0]), alone("PyTorch", [8.0])], served())
    docs = publish.in_docs(f"# Page\n\n{publish.BEGIN}\nold\n{publish.END}\n\n# Next\n", found)
    assert "old" not in docs
    assert docs.startswith("# Page\n")
    assert docs.endswith("# Next\n")
    assert publish.in_docs(docs, found) == docs
    readme = "| a | b | c |\n| Encoders, old | x | y |\n| Encoders served, old | x | y |\n| GPU | x | y |\n"
    once = publish.in_readme(readme, found)
    assert publish.in_readme(once, found) == once
    assert "old" not in once
    assert once.splitlines()[-1] == "| GPU | x | y |"
    assert "ours FP32 12 texts/s, 1.50 times PyTorch (8)" in once


@pytest.mark.parametrize("kept", KEPT, ids=lambda path: path.stem)
def test_table_figure_and_pages_say_what_the_committed_numbers_give(module, kept, tmp_path):
    publish, report = module("publish"), module("report")
    found = json.loads(kept.read_text())
    report.write(found, tmp_path)
    assert (tmp_path / "bench.md").read_text() == kept.with_suffix(".md").read_text()
    assert (tmp_path / "bench.png").stat().st_size > 10_000
    docs, readme = (ROOT / "docs" / "benchmarks.md").read_text(), (ROOT / "README.md").read_text()
    assert publish.in_docs(docs, found) == docs
    assert publish.in_readme(readme, found) == readme
