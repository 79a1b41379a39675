"""Tables: what a Delta, Iceberg or Lance table holds at one of its versions, and what became of it since another.

Each format is read by the library made for it, which is imported only where a spec names the format. Never here: what
of a table is to be scored, and how its rows are read.
"""
