"""Make and judge a new bundle: the sample, the artifacts, each through the gate.

Never here: what a worker needs to score.
"""
