"""Keep a run: numbers, table and figure in ``benchmarks/results``, and what README and docs say of them."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

from benchmarks.encoders import report
from benchmarks.encoders.classes import CLASSES, fastest, rate, ratio, split
from benchmarks.encoders.verdict import summaries

BEGIN, END = "<!-- written by make bench PUBLISH=1 -->", "<!-- end -->"
ROW = re.compile(r"^\| Encoders[^\n]*\n", re.MULTILINE)
SECTION = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
SERVED_AT = 32  # clients, in the README


def publish(made: Path, root: Path) -> None:
    """Take over what a run left in `made`, instead of what an earlier one left."""
    results = json.loads((made / "bench.json").read_text(encoding="utf-8"))
    folder = root / "benchmarks" / "results"
    for old in folder.glob("*-encoders.*"):
        old.unlink()
    name = f"{results['facts']['date']}-encoders"
    for suffix in ("json", "md", "png"):
        shutil.copy2(made / f"bench.{suffix}", folder / f"{name}.{suffix}")
    docs, readme = root / "docs" / "benchmarks.md", root / "README.md"
    docs.write_text(in_docs(docs.read_text(encoding="utf-8"), results), encoding="utf-8")
    readme.write_text(in_readme(readme.read_text(encoding="utf-8"), results), encoding="utf-8")


def in_docs(text: str, results: dict[str, Any]) -> str:
    """The page with the section that holds figure, tables and verdict of a run."""
    name = f"../benchmarks/results/{results['facts']['date']}-encoders"
    shown = f"![Texts a second in one process, and requests a second by number of clients, by class]({name}.png)"
    body = f"{BEGIN}\n{shown}\n\n[Numbers]({name}.json)\n\n{report.markdown(results)}{END}"
    return SECTION.sub(lambda _: body, text)


def in_readme(text: str, results: dict[str, Any]) -> str:
    """The page with the rows of a run in its table of results, where such rows were."""
    rows = "".join(f"{row}\n" for row in readme_rows(results))
    first = ROW.search(text)
    if first is None:
        raise ValueError("README.md has no row that begins with '| Encoders'")
    rest = ROW.sub("", text)
    return rest[: first.start()] + rows + rest[first.start() :]


def readme_rows(results: dict[str, Any]) -> list[str]:
    """Ours and the best of the others by class, in one process and served."""
    machine, link = results["facts"]["machine"].partition(" · ")[0], "[Benchmarks](docs/benchmarks.md)"
    ours, theirs = split(results["inprocess"])
    alone = by_class(ours, theirs, "texts/s")
    here = [row for row in summaries(results["served"], SERVED_AT) if "gateway" not in row["name"]]
    served = by_class(*split(here), "requests/s")
    return [
        f"| Encoders in one process, by quality class | {machine} | {alone}. {link} |",
        f"| Encoders served, one text a request, {SERVED_AT} clients | the same | {served}. {link} |",
    ]


def by_class(ours: list[dict[str, Any]], theirs: list[dict[str, Any]], unit: str) -> str:
    """``"exact: ours 260 texts/s, 1.13 times OpenVINO's 230; …"``."""
    found = []
    for wanted in CLASSES:
        mine, best = fastest(ours, wanted), fastest(theirs, wanted)
        if mine and best:
            times = f"{ratio(mine, best):.2f} times {best['name']} ({rate(best):.0f})"
            found.append(f"{wanted}: {mine['name']} {rate(mine):.0f} {unit}, {times}")
    return "; ".join(found)
