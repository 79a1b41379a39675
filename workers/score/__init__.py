"""The hot loop: a loaded bundle, and what it does with a shard.

Never here: retries, isolation, anything that happens once a shard goes wrong.
"""
