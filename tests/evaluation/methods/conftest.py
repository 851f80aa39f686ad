"""The pipeline on which rows are tried."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture(scope="module")
def pipe(tiny_wan: Any) -> Any:
    return tiny_wan()
