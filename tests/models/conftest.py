"""Fixture that compares a network with a reference implementation."""

import pytest

from .parity import Parity


@pytest.fixture
def parity(record_property):
    return Parity(record_property)
