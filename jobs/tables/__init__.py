"""Tables: what a Delta, Iceberg or Lance table holds at one of its versions, and what became of it since another.

Delta is read by its log; Iceberg and Lance by the libraries made for them, which are imported only where a spec names
the format. Never here: what of a table is to be scored, and how its rows are read.
"""
