"""Labelled images, from a SPEC to batches: sources -> audit -> splits -> batches."""
