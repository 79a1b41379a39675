"""Commands that measure: tune, compare, bench.

Never here: what a run needs; what is measured reaches a run through the bundle's profiles alone.
"""
