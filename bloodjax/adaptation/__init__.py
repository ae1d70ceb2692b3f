"""A trained run, adapted to images of another laboratory."""
