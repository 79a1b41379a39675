"""Commands that only read: plan, status, verify, report, explain, sample.

Never here: anything that writes to the output store.
"""
