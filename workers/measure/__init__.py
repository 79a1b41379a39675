"""Processes that measure networks and layouts, for `jobs.measure`.

Never here: anything that a run imports.
"""
