"""What a person writes: the keys of the spec, YAML, days, and what of it changes predictions.

Never here: a look at the input or the output; a spec is read without either.
"""
