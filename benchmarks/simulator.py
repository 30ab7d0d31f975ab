"""How long the simulator takes for 100,000 requests, and the sliders for one redraw:

python -m benchmarks.simulator
"""

import statistics
import time

import numpy as np

from accel_lib.show.plots.answer import Answer, BatchSizes, Latencies
from accel_lib.simulation.simulator import simulate
from tests.unit.test_simulate import calibration

REPEATS = 15


def seconds(act):
    taken = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        act()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken), max(taken)


def main():
    service = calibration(noise=(0.9, 1.0, 1.1), transport_ms=2, client_ms=0.2)
    delayed = service.config.replace(max_queue_delay_us=5_000, preferred_batch_sizes=(4, 8))
    for name, config in (("no delay", service.config), ("preferred sizes and a delay", delayed)):
        began = time.perf_counter()
        run = simulate(service, config, rate=300, requests=100_000)
        taken = time.perf_counter() - began
        print(f"100,000 requests, {name}: {taken:.2f} s (limit 2 s), p95 {run.p95_ms:.1f} ms")
    answer = Answer(Latencies("answered within, ms", 40), BatchSizes())

    def redraw():
        run = simulate(service, delayed, rate=float(np.random.default_rng().uniform(100, 400)), requests=5_000)
        answer.show(run.headline, {"now": (run.frame["ms"].to_numpy(), run.batch_sizes)})

    redraw()
    median, longest = seconds(redraw)
    print(
        f"one redraw of the sliders, 5,000 requests: {median * 1e3:.0f} ms, longest {longest * 1e3:.0f} (limit 150 ms)"
    )


if __name__ == "__main__":
    main()
