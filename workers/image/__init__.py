"""From encoded bytes to the square of pixels that the network sees, or the reason why there is none.

Never here: where the bytes come from.
"""
