"""Processes that load a network and measure it, and those that make what is measured, for `jobs.measure`.

Nothing that scores a shard belongs here, or depends on it.
"""
