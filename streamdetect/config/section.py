"""Base of every section of settings."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

Port = Annotated[int, Field(strict=True, ge=0, le=65_535)]
PROBLEM = "problem"
Text = Annotated[str, Field(min_length=1)]


class Section(BaseModel):
    """A section of settings: immutable, no unknown names, each field described by the text under it.

    Defaults are validated too, so that checks between two settings also see an omitted one.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        validate_default=True,
        validate_by_name=True,
        validate_by_alias=True,
        use_attribute_docstrings=True,
        hide_input_in_errors=True,
    )


def custom_problem(message: str) -> PydanticCustomError:
    """An error whose text is shown to the user unchanged."""
    return PydanticCustomError(PROBLEM, "{message}", {"message": message})


def problem_at(name: str, message: str) -> ValidationError:
    """An error that a validator raises for the setting `name` inside the validated one."""
    detail = InitErrorDetails(type=custom_problem(message), loc=(name,), input=None)
    return ValidationError.from_exception_data("settings", [detail])
