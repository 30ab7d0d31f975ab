"""What ``accel cores`` shows: ways to share cores, told apart."""

import numpy as np
import pandas as pd

from accel_lib.tuning import findings_tune
from accel_lib.tuning.sweep import Sweep


def test_ways_to_share_cores_are_told_apart_in_the_table_of_a_sweep():
    frame = pd.DataFrame({"instance_count": [2, 1, 1], "threads": [1, 2, 1], "sentences_per_s": [328, 212, 179]})
    frame = frame.assign(p95_ms=[146, 125, 161], sentences_per_s_low=frame["sentences_per_s"] * 0.95)
    frame = findings_tune.with_front(frame.assign(sentences_per_s_high=frame["sentences_per_s"] * 1.05))
    frame.attrs["machine"] = "2 cores"
    shown = str(Sweep(frame=frame, served=None, base=None, p95_ms=np.inf, alone_ms=8.0)).splitlines()
    assert "instances threads " in shown[0]
    assert len({tuple(line.split()[:2]) for line in shown[1:4]}) == 3
    assert shown[4].startswith("2 instances, 1 thread each: 328 sentences/s")
