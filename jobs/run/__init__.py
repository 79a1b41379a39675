"""A run from start to end: bundle, loop, failed attempts, done record, report.

Never here: how workers are reached (`jobs.pool`), or the rules by which their number is decided (`jobs.scaling`).
"""
