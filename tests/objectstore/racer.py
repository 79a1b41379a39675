"""A writer in a process of its own: creates each key that it reads from stdin, and says whether it won.

`python -m tests.objectstore.racer URL NAME`
"""

from __future__ import annotations

import sys

from workers.storage.store import open_store


def main(url: str, name: str) -> None:
    store = open_store(url)
    print("ready", flush=True)
    for line in sys.stdin:
        print(store.create(line.strip(), name.encode()), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
