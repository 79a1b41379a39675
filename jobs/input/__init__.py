"""What the input holds now: folders listed, lists of files read, footers opened.

Never here: what of it is new, which `jobs.plan` knows.
"""
