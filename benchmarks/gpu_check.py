"""The proof on a GPU: engines, a real Triton with GPU instances, its metrics, memory to its end, and the tests.

    python -m benchmarks.gpu_check --output results [--seconds 480] [--note "..."] [--rehearse]

Writes ``gpu.json`` after every step and ``gpu.png`` at the end, dated, with the card's name. A step that fails or would
start too late is said, and the others go on. ``--rehearse`` takes small sizes, also on a CPU. ``--draw gpu.json
gpu.png`` draws what was kept.
"""

import argparse
import functools
import json
import subprocess
import sys
import tempfile
import time
import traceback
from datetime import UTC, datetime
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import torch

import accel_lib as accel
from accel_lib.bench.memory import fit_memory
from accel_lib.engines.batching import GPU_BATCH_TOKENS, run_batches
from accel_lib.engines.oom import safe_tokens
from accel_lib.load.experiment import vary
from accel_lib.load.monitor import watch
from accel_lib.machine import inspect_machine
from accel_lib.measurement import columns, take_turns
from benchmarks import gpu_figure

ROOT = Path(__file__).parents[1]
T4_BYTES = 15 * 2**30
NEWEST_NOTEBOOK = "05_dynamic_batching"


class Proof:
    """The steps, each of which returns what goes into the JSON file."""

    def __init__(self, asked: argparse.Namespace, folder: Path) -> None:
        self.asked, self.folder = asked, folder
        self.ends_s = time.monotonic() + asked.seconds
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = accel.load_model()
        self.texts = accel.load_texts("mixed", limit=32 if asked.rehearse else 512)
        machine = inspect_machine()
        self.kept = {
            "date": datetime.now(UTC).date().isoformat(),
            "card": machine.gpus[0].name if machine.gpus else "none",
            "machine": str(machine),
            "driver": machine.gpus[0].driver if machine.gpus else "",
            "versions": machine.versions,
            "note": asked.note,
            "steps": {},
        }

    def run(self) -> int:
        """Take the steps in order of weight; 0 if none failed."""
        steps = (self.engines, self.served, self.memory, self.t4_budget, self.tests, self.notebook, self.compared)
        for step in (step for step in steps if step.__name__ in (self.asked.steps or step.__name__)):
            started = time.monotonic()
            if started > self.ends_s:
                result = {"verdict": "left out: no time left"}
            else:
                try:
                    result = {"verdict": "passed"} | step()
                except Exception as error:  # whatever a step meets, the next ones still tell something
                    traceback.print_exc()
                    result = {"verdict": f"failed: {type(error).__name__}: {str(error).splitlines()[0]}"}
            result["seconds"] = round(time.monotonic() - started, 1)  # type: ignore[assignment]
            self.kept["steps"][step.__name__] = result
            (self.asked.output / "gpu.json").write_text(json.dumps(self.kept, indent=1) + "\n")
            told = f"{result['verdict']} ({result['seconds']} s) {result.get('finding', '')}"
            print(f"== {step.__name__}: {told}\n", flush=True)
        gpu_figure.draw(self.kept, self.asked.output / "gpu.png")
        failed = [name for name, result in self.kept["steps"].items() if result["verdict"].startswith("failed")]
        print(f"gpu-check on {self.kept['card']}: {'failed: ' + ', '.join(failed) if failed else 'passed'}")
        return int(bool(failed))

    @functools.cached_property
    def artifact(self) -> accel.Artifact:
        """The course's optimized version: a PyTorch program, in FP16 on a GPU, validated."""
        artifact = accel.to_torch(self.model, precision="fp16" if self.device == "cuda" else "fp32", progress=False)
        print(repr(accel.validate(artifact, reference=self.model, texts=list(self.texts)[:64])), flush=True)
        return accel.Artifact.load(artifact.folder)

    def engines(self) -> dict:
        """FP32, FP16 and FP16 with CUDA graphs at three shapes, in turns."""
        kinds = {"torch fp32": {}}
        if self.device == "cuda":
            kinds |= {"torch fp16": {"precision": "fp16"}}
            kinds |= {"torch fp16, CUDA graphs": {"precision": "fp16", "cuda_graphs": True}}
        opened = {name: accel.open_engine(self.model, device=self.device, **options) for name, options in kinds.items()}
        rows = []
        for batch, tokens in ((1, 16), (2, 32)) if self.asked.rehearse else ((1, 16), (32, 64), (256, 128)):
            ids = np.random.default_rng(0).integers(1_000, 20_000, (batch, tokens))
            mask = np.ones_like(ids)
            runs = {name: functools.partial(engine.run, ids, mask) for name, engine in opened.items()}
            for run in runs.values():
                run()
            taken = take_turns(runs, repeats=6 if self.asked.rehearse else 40, seconds=8)
            first = next(iter(taken.values()))
            for name, seconds in taken.items():
                shape = {"name": name, "batch_size": batch, "tokens": tokens}
                rows.append(shape | columns("ms", seconds * 1e3) | columns("speedup", first / seconds))
        for engine in opened.values():
            engine.close()
        best = max(rows, key=lambda row: row["speedup"])  # type: ignore[return-value]
        where = f"{best['batch_size']} × {best['tokens']}"
        return {"rows": rows, "finding": f"{best['name']} is {best['speedup']:.1f} times as fast as fp32 at {where}"}

    def compared(self) -> dict:
        """PyTorch in FP32 and the course's FP16 against sentence-transformers, in FP32 and FP16, with agreement."""
        candidates = [self.model, *([self.artifact] if self.device == "cuda" else [])]
        result = accel.compare(candidates, self.texts, seconds=4 if self.asked.rehearse else 30)
        print(result)
        return {"rows": result.frame.to_dict("records"), "finding": result.headline}

    def served(self) -> dict:
        """GPU instances, queue delay and batch size in a real Triton, with its own metrics of the GPU."""
        seconds = 2.0 if self.asked.rehearse else 3.0
        many, rows = (4, 1) if self.asked.rehearse else (128, 8)
        repository = self.folder / "served"
        repository.mkdir()
        kept = {}
        with accel.serve(repository) as server:
            served = server.add("proof", self.artifact)
            kind = "gpu" if self.device == "cuda" else "cpu"
            experiments = {
                "instances": {f"{n} instances" if n > 1 else "1 instance": {"instance_count": n} for n in (1, 2, 4)},
                "delay": {f"{ms} ms": {"max_queue_delay_us": 1_000 * ms} for ms in (0, 1, 5, 20)},
                "batch size": {str(n): {"max_batch_size": n} for n in (8, 32, 128, 512)},
            }
            served.configure(instance_kind=kind, max_batch_size=128)
            with watch(served) as seen:
                for name, settings in experiments.items():
                    settings = dict(list(settings.items())[:2]) if self.asked.rehearse else settings
                    at = (many,) if name == "batch size" else (min(8, many // 2), many)
                    result = vary(served, self.texts, settings, concurrency=at, seconds=seconds, repeats=1, rows=rows)
                    print(name, result, result.explanation, sep="\n", flush=True)
                    kept[name] = {
                        "rows": _plain(result.frame),
                        "finding": result.headline,
                        "because": result.explanation,
                    }
            metrics = seen.result.metrics
            gpu = metrics[metrics["name"].str.startswith("nv_gpu_")].groupby("name")["value"].max().to_dict()
            on_gpu = "GPU device 0" in server.log
        if self.device == "cuda" and not (on_gpu and gpu.get("nv_gpu_memory_used_bytes", 0) > 0):
            raise AssertionError(f"no GPU instance, or no metrics of the GPU: {gpu}")
        words = ", ".join(f"{name} up to {value:,.3g}" for name, value in gpu.items())
        return {"experiments": kept, "gpu_metrics": gpu, "rows_a_request": rows, "finding": words or "no GPU metrics"}

    def memory(self) -> dict:
        """What a batch needs, fitted in a process of its own and checked on a larger one."""
        sizes, check = ((2, 4), 8) if self.asked.rehearse else ((256, 512, 1024), 4096)
        result = fit_memory(self.artifact, length=128, sizes=sizes, check=check, device=self.device)
        print(result)
        return {"rows": result.frame.to_dict("records"), "error": result.error, "finding": result.headline}

    def t4_budget(self) -> dict:
        """A T4's 15 GB as this card's limit: the course's batches fit, and a search ends in a real out-of-memory."""
        if self.device == "cpu":
            return {"verdict": "left out: needs a GPU"}
        engine = accel.open_engine(self.model, device="cuda", precision="fp16")
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, T4_BYTES / total))
        try:
            run_batches(engine, [np.full(128, 2_000, dtype=np.int64)] * 1024)
            course_bytes = torch.cuda.max_memory_reserved()
            rows = [np.full(128, 2_000, dtype=np.int64)] * (64 if self.asked.rehearse else 2**16)
            answers = run_batches(engine, rows, max_batch_tokens=len(rows) * 128)
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
        limit = safe_tokens(engine)
        engine.close()
        if not np.isfinite(answers).all():
            raise AssertionError("after the out-of-memory the answers are not finite")
        asked = len(rows) * 128
        end = f"{asked:,} at once ran out of memory, {limit:,} fit" if limit else f"{asked:,} at once fit too"
        held = f"batches of {GPU_BATCH_TOKENS:,} tokens hold {course_bytes / 2**30:.2f} GiB"
        finding = f"within {T4_BYTES / 2**30:.0f} GiB, {held}; {end}"
        return {"course_bytes": course_bytes, "asked_tokens": asked, "safe_tokens": limit, "finding": finding}

    def tests(self) -> dict:
        """The tests marked gpu, without reading the others, which need more packages."""
        report = self.folder / "tests.xml"
        marked = [path for path in sorted(ROOT.glob("tests/*/test_*.py")) if "pytest.mark.gpu" in path.read_text()]
        options = ["-q", "-m", "gpu", "-p", "no:cacheprovider", f"--junitxml={report}"]
        command = [sys.executable, "-m", "pytest", *options, *map(str, marked)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        print(done.stdout[-4000:])
        suite = ElementTree.parse(report).getroot().find("testsuite")
        counts = {name: int(suite.get(name)) for name in ("tests", "failures", "errors", "skipped")}
        if counts["failures"] or counts["errors"]:
            raise AssertionError(str(counts))
        return counts | {"finding": f"{counts['tests'] - counts['skipped']} passed, {counts['skipped']} skipped"}

    def notebook(self) -> dict:
        """The batching notebook on this machine, by papermill."""
        name = self.asked.notebook
        if not (ROOT / "notebooks" / f"{name}.ipynb").is_file():
            return {"verdict": f"left out: no notebook {name}"}
        command = [sys.executable, "-c", "from accel_lib.cli import app; app()", "course", "run", name]
        done = subprocess.run(
            [*command, "--output", str(self.asked.output)], cwd=ROOT, capture_output=True, text=True, check=False
        )
        print(done.stdout[-2000:], done.stderr[-2000:])
        if done.returncode:
            raise AssertionError(done.stdout.strip().splitlines()[-1] if done.stdout else done.stderr[-300:])
        return {"finding": f"{name} ran from top to bottom"}


def _plain(frame) -> list[dict]:
    return json.loads(frame.to_json(orient="records"))


def main() -> int:
    """Run it, or draw what was kept."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("out/gpu"))
    parser.add_argument("--seconds", type=float, default=480, help="no step starts later")
    parser.add_argument("--note", default="", help="what a reader of the results should know")
    parser.add_argument("--notebook", default=NEWEST_NOTEBOOK)
    parser.add_argument("--steps", nargs="*", default=[], help="take these alone")
    parser.add_argument("--rehearse", action="store_true", help="small sizes, also on a CPU")
    parser.add_argument("--draw", nargs=2, metavar=("JSON", "PNG"), help="draw kept results and end")
    asked = parser.parse_args()
    if asked.draw:
        gpu_figure.draw(json.loads(Path(asked.draw[0]).read_text()), Path(asked.draw[1]))
        return 0
    asked.output = asked.output.resolve()
    asked.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        return Proof(asked, Path(folder)).run()


if __name__ == "__main__":
    sys.exit(main())
