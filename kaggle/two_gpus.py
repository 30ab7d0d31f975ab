"""What the second T4 gives: one Triton instance on each, and one model split over the two.

python kaggle/two_gpus.py two_gpus.json
"""

import json
import sys
from pathlib import Path

import accel_lib as accel
from accel_lib.load.multi_gpu import instances, splitting

if __name__ == "__main__":
    texts = accel.load_texts("mixed", limit=512)
    results = [
        instances(accel.ensure("embedding"), texts),
        splitting(accel.load_model(), texts),
        splitting(accel.load_model("MiniLM-L12-H384-random"), texts),
    ]
    for result in results:
        print(result, end="\n\n", flush=True)
    found = [{"finding": result.headline, "rows": result.frame.to_dict("records")} for result in results]
    Path(sys.argv[1]).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
