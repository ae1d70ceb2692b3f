"""Values of single keys, for the tests of a config."""


def nested(key, value):
    """The value by its dotted key, as a tree that `validate` takes."""
    first, _, rest = key.partition(".")
    return {first: nested(rest, value) if rest else value}
