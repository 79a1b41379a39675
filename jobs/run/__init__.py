"""A run from start to end: bundle, loop, failed attempts, done record, report.

Never here: how workers are reached (`jobs.pool`) or how many there should be (`jobs.fleet`).
"""
