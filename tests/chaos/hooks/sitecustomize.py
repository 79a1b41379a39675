"""Kills this process at the failpoint that is armed: see tests/chaos/failpoints.py. Without STINT_FAILPOINTS, nothing.

Python imports this module at its start wherever the folder is on PYTHONPATH: drivers, raylets, and Ray's workers, which
inherit the environment. Standard library only, because it runs in processes of all kinds.
"""

import importlib.abc
import importlib.machinery
import os
import signal
import sys
import threading
from pathlib import Path

KINDS = (  # part of the key, name of the kind; the first that fits
    ("_stint/probe", "probe"),
    ("/manifest.json", "bundle-manifest"),
    ("_stint/bundles/", "bundle-file"),
    ("/_stint/plans/", "plan"),
    ("/_stint/done/", "done"),
    ("/spec.json", "run-spec"),
    ("/report.json", "report"),
    ("/report.html", "page"),
    ("_stint/current/", "current"),
    ("_stint/editions/", "edition"),
    (".metadata.json", "table"),
    ("/_stint/crashes/", "crash"),
    ("/plan=", "shard"),
)
STORES = ("LocalStore", "ObjectStore")


def kind_of(key):
    """Which kind of object lies at a key of the output; None for one that is not told apart."""
    return next((kind for part, kind in KINDS if part in key), None)


class Failpoints:
    def __init__(self, folder):
        self._folder = folder
        self._came_by = {}
        self._creating = threading.local()
        self._serial = threading.RLock()

    def come_by(self, key, moment):
        name = f"{kind_of(key)} {moment}"
        try:
            nth = int((self._folder / "armed" / name).read_text())
        except (OSError, ValueError):
            return
        self._came_by[name] = self._came_by.get(name, 0) + 1
        if self._came_by[name] < nth:
            return
        try:
            (self._folder / "armed" / name).rename(self._folder / "hit" / name)
        except OSError:
            return  # another process was first
        (self._folder / "hit" / name).write_text(f"pid {os.getpid()}")
        os.kill(os.getpid(), signal.SIGKILL)

    def wrap_store(self, store):
        create = store.create

        def killing(instance, key, *more, **options):
            # One at a time: a worker writes two shards at once, and would die at the second with the first half done.
            with self._serial:
                return killed_or_created(instance, key, *more, **options)

        def killed_or_created(instance, key, *more, **options):
            self._creating.key = key
            self.come_by(key, "before")
            try:
                created = create(instance, key, *more, **options)
            finally:
                self._creating.key = None
            self.come_by(key, "after")
            return created

        store.create = killing

    def wrap_link(self):
        link = os.link

        def killing(source, target, **options):
            if getattr(self._creating, "key", None):
                self.come_by(self._creating.key, "within")
            return link(source, target, **options)

        os.link = killing


class Hook(importlib.abc.MetaPathFinder):
    """Wraps the stores of whichever of the workers' modules defines them, as soon as that has been imported."""

    def __init__(self, failpoints):
        self._failpoints = failpoints

    def find_spec(self, name, path=None, target=None):
        if not name.startswith("workers."):
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return None
        execute, failpoints = spec.loader.exec_module, self._failpoints

        def exec_module(module):
            execute(module)
            for store in STORES:
                defined = vars(module).get(store)
                if defined is not None and defined.__module__ == name:
                    failpoints.wrap_store(defined)

        spec.loader.exec_module = exec_module
        return spec


if os.environ.get("STINT_FAILPOINTS"):
    _failpoints = Failpoints(Path(os.environ["STINT_FAILPOINTS"]))
    _failpoints.wrap_link()
    sys.meta_path.insert(0, Hook(_failpoints))
