"""Load what the spec names: architecture, weights, labels, preprocessing, in fp32.

Never here: INT8.
"""
