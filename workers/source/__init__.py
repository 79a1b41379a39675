"""From a shard to encoded images, row by row: Parquet, tar, files, links.

Never here: pixels; nothing in this room decodes an image.
"""
