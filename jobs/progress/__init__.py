"""How a run stands, as plain values, and whom it is shown to: a terminal, a log, a monitoring system.

Never here: the loop's decisions, or a figure that is worked out only for one display.
"""
