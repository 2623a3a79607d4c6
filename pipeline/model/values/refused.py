"""The refusal of one value, before anyone knows which column it was meant for."""

from __future__ import annotations


class Refused(Exception):
    """Why a value is not taken. Names its type and what to do; never the value, which may be a secret."""

    def __init__(self, value: object, advice: str):
        super().__init__(f"cannot take this {type(value).__name__}: {advice}")
