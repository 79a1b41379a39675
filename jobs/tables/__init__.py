"""Tables: what a Delta, Iceberg or Lance table holds at one of its versions, and what became of it since another.

And the other way round: the table in which a job shows its predictions, and how it comes to hold what readers see.

Delta is read by its log; Iceberg and Lance by the libraries made for them, which are imported only where a spec names
the format. Never here: what of a table is to be scored, and how its rows are read.
"""
