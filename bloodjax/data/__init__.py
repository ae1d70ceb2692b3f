"""From a SPEC to clean, split, labelled images: sources -> audit -> splits -> batches."""
