"""What a run did, as figures: its journal, its report, its predictions against those of nights before.

Never here: HTML, which is for `jobs.pages`; nor anything that a run needs to be correct.
"""
