"""How many workers, on which nodes, and when a second attempt pays: decisions, and what is counted for them.

Never here: Ray, a clock, a store; times come as arguments.
"""
