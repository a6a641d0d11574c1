"""What a link copies and how, as an operator sets it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from worker.errors import ConfigError


class LinkSettings(BaseModel):
    """What a link copies and how; `accounts link MAIN CHILD --set name=value` changes one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    match_field: Literal["externalCode", "code", "article", "name", "barcode"] = Field(
        "externalCode", description="Field a good the child already has is recognised by."
    )
    price_types: dict[str, str] = Field(
        default_factory=dict, description="Main's price type name → the child's; others go by their own name."
    )
    create_price_types: bool = Field(False, description="Create in the child a price type it lacks.")
    vat: Literal["main", "child"] = Field("main", description="Whose VAT counts: copied from main, or left alone.")
    every_minutes: int = Field(0, ge=0, description="Sync by itself every so many minutes; 0 = only on request.")

    @classmethod
    def parse(cls, values: dict[str, Any]) -> LinkSettings:
        """Raises ConfigError naming each setting that does not hold."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            lines = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_url=False)]
            raise ConfigError("link settings do not hold: " + "; ".join(lines)) from None
