"""What a run is to do: the job resolved, what of the input is new, cut into shards.

Never here: scoring. Nothing in this room starts a worker.
"""
