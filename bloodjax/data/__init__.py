"""From a SPEC to clean, split, labelled pictures: sources -> audit -> splits -> batches."""
