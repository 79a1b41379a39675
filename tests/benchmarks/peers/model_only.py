"""The bare model in a process: import torch, load the archive, score photographs from memory; says how much it took.

python -m tests.benchmarks.peers.model_only WORK.json ROWS
"""

from __future__ import annotations

import sys
from pathlib import Path


def main() -> None:
    import pyarrow as pa

    from tests.benchmarks.peers.scoring import Network, Work
    from workers.host.memory import peak_rss_bytes

    work, rows = Work.read(sys.argv[1]), int(sys.argv[2])
    pictures = [file.read_bytes() for file in sorted(Path(work.images).glob("*.jpg"))]
    network = Network(work)
    for _ in range(0, rows, len(pictures)):
        network.score(pa.array(pictures, pa.binary()))
    print(peak_rss_bytes())


if __name__ == "__main__":
    main()
