"""Suites for asv, which tracks time and memory over the revisions of this repository."""
