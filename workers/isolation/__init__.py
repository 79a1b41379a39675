"""Processes that may die of the images they are given, and the search for the rows that kill them.

Never here: what an ordinary shard needs.
"""
