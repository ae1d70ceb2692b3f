"""How a network is held against a reference."""

import pytest

from .parity import Parity


@pytest.fixture
def parity(record_property):
    return Parity(record_property)
