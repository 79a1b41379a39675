"""Commands that measure: tune, compare and bench, with the figures, tables and pictures that they give.

What holds a network runs in processes of `workers.measure`: this room never loads one.
"""
