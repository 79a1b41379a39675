"""The process that decodes a sample's images: `python -m workers.isolation.decoder FD PARENT`. It may die of any of them."""

from __future__ import annotations

from contextlib import suppress
from multiprocessing.connection import Connection

from workers.contract import Preprocess
from workers.failures import classify
from workers.host.child import to_parent
from workers.image.errors import BadImage
from workers.isolation.sample_decoder import straight


def serve(parent: Connection) -> None:
    """For each image its crop, a BadImage, or a Failure, until the parent closes the connection."""
    how: Preprocess = parent.recv()
    decode = straight(how)
    parent.send("ready")
    while True:
        image: bytes = parent.recv()
        try:
            parent.send(decode(memoryview(image)))
        except BadImage as bad:
            parent.send(bad)
        except Exception as error:  # noqa: BLE001  (every error becomes a sorted Failure that the parent acts on)
            parent.send(classify(error))


if __name__ == "__main__":
    connection = to_parent()
    with suppress(EOFError, ConnectionError):
        serve(connection)
