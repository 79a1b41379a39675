"""Reports and histories as pages that load nothing, with their templates and charts.

Never here: figures worked out; a page shows what `jobs.report` says.
"""
