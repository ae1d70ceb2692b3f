"""The message of the `UserError` that a call raises."""

import pytest

from bloodjax.errors import UserError


def error_of(function, *args):
    with pytest.raises(UserError) as caught:
        function(*args)
    return str(caught.value)
