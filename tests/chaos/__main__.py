"""`python -m tests.chaos`: seeded rounds of chaos on a real cluster, and a table of what came of them.

python -m tests.chaos --seed 7               one round, exactly that of seed 7
python -m tests.chaos --seeds 5              seeds 0 to 4
python -m tests.chaos --minutes 10           as many as are begun within ten minutes
"""

from __future__ import annotations

import argparse
import itertools
import signal
import sys
import tempfile
import time
from pathlib import Path

from tests.chaos.campaign import campaign, table
from tests.chaos.faults import FAULTS
from tests.chaos.oracle import Folder
from tests.support.digits_job import make_digits


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--seeds", type=int, default=None, help="how many; 1 without --minutes")
    parser.add_argument("--minutes", type=float, default=None, help="begin no round later than this")
    parser.add_argument("--fault", action="append", choices=list(FAULTS), default=[], help="only these, in this order")
    arguments = parser.parse_args()
    seeds = itertools.count(arguments.seed)
    if arguments.seeds is not None or arguments.minutes is None:
        seeds = itertools.islice(seeds, arguments.seeds or 1)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the cluster is ended then too
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="chaos-job-") as name:
        folder = Path(name)
        digits = make_digits(folder / "digits")
        with campaign(digits, _say) as running:
            for seed in seeds:
                if arguments.minutes is not None and time.monotonic() - began > arguments.minutes * 60:
                    break
                here = folder / f"seed-{seed}"
                came = running.round(seed, here, str(here / "out"), Folder(here / "out"), arguments.fault)
                for problem in came.problems:
                    _say(f"PROBLEM: {problem}")
                if not came.ok:
                    _say(f"seed {seed} FAILED: {came.count}, {len(came.rewritten)} rewritten")
            print(table(running.rounds))
            return 0 if all(came.ok for came in running.rounds) else 1


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
