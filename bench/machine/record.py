"""What all records have in common: they do not change once they are made."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """What a job returns, and writes as JSON."""

    model_config = ConfigDict(frozen=True)


class StrictRecord(Record, extra="forbid"):
    """A record that is read back: a field that it does not know is an error."""
