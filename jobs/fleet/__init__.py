"""How many workers, on which nodes, and when a second attempt pays: pure decisions.

Never here: Ray, a clock, a store; times come as arguments.
"""
