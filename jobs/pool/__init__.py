"""Where workers run: Ray, a Ray of this machine's own, threads of this process. All share one contract.

Never here: decisions. A pool keeps workers and passes on shards and what comes back.
"""
