"""From what Typer parsed to the settings of a job, each value with its origin."""

from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from batchserve.config import Settings


class Debug:
    """Whether the job's settings ask for tracebacks, for `main` to know when it has failed."""

    wanted = False


_NOT_FIELDS = {"inputs", "paths", "output", "config", "first", "second", "tolerance", "top"}


def of(ctx: typer.Context, inputs: list[str], file: str | None, **more: object) -> "Settings":
    """Return what the flags, the environment and the config files say together.

    Args:
        ctx: Of the command that was called.
        inputs: Its input paths.
        file: The config that it names, or None.
        **more: What else it says.

    Raises:
        BatchserveError: Some of it makes no sense.
    """
    from batchserve import config

    given = {k: v for k, v in ctx.params.items() if v not in (None, [], ()) and k not in _NOT_FIELDS}
    settings = config.load(given | more, inputs, config=file)
    Debug.wanted = settings.job.debug
    return settings


def provenance(settings: "Settings") -> dict[str, str]:
    """Return every value that was said, with its origin, and the names of the others."""
    values = settings.job.model_dump(by_alias=True)
    said = {key: f"{values[key]}  ({origin})" for key, origin in settings.origins.items()}
    return said | {"default": ", ".join(key for key in values if key not in said)}
