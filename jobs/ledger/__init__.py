"""Plans, done records, crashes, the promoted root: the only state there is, all of it created once and never changed.

Never here: decisions on what to claim or to score, and anything that only informs a person.
"""
