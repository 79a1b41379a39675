"""How many workers, on which nodes, and when a second attempt pays: rules, and what is counted for them.

The book of the workers themselves lies with the loop (`jobs.run.fleet`).

Never here: Ray, a clock, a store; times come as arguments.
"""
