"""`batchserve cluster`: worker processes in the background, for many jobs."""

from typing import Annotated

import typer

from batchserve import spelling
from batchserve.cli import flags
from batchserve.errors import UsageError

app = typer.Typer(
    help="Start and stop background clusters of worker processes.\n\n"
    "Example: batchserve cluster start --workers 8",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Name = Annotated[str, typer.Option("--name", help="Which cluster.", metavar="NAME")]
MemoryLimit = Annotated[
    str | None,
    typer.Option("--memory-limit", help="Memory each worker may use [default: its share].", metavar="SIZE"),
]
Processes = Annotated[
    int | None,
    typer.Option("--workers", help="Worker processes [default: usable CPUs].", metavar="N", min=1),
]


@app.command()
def start(
    name: Name = "default",
    workers: Processes = None,
    memory_limit: MemoryLimit = None,
    debug: flags.Debug = None,
) -> None:
    """Start a scheduler and workers in the background, on this machine's loopback alone.

    Every user of this machine can reach the port, and whoever does can run code as you.

    Example: batchserve cluster start --workers 8
    """
    from batchserve import console
    from batchserve.cluster import named

    made = named.start(name, workers, _bytes(memory_limit))
    ours = "" if name == named.DEFAULT_NAME else f" --name {name}"
    facts = {
        "scheduler": made.address, "dashboard": made.dashboard,
        "workers": f"{made.workers}, each with {made.memory_limit >> 20:,} MiB", "logs": str(made.folder),
        "use it": f"batchserve score INPUT OUTPUT --cluster {name}",
        "stop it": f"batchserve cluster stop{ours}",
    }  # fmt: skip
    console.table(f"cluster {name}", facts)


def _bytes(text: str | None) -> int | None:
    try:
        return int(spelling.size(text)) if text else None
    except ValueError as error:
        raise UsageError(
            f"--memory-limit = {text!r}: {error}", "see batchserve cluster start --help"
        ) from None


@app.command()
def status(name: Name = "default", debug: flags.Debug = None) -> None:
    """Show a background cluster.

    Example: batchserve cluster status
    """
    from batchserve import console
    from batchserve.cluster import named

    console.table(f"cluster {name}", named.status(name))


@app.command()
def stop(name: Name = "default", debug: flags.Debug = None) -> None:
    """End a background cluster; jobs that run on it end with an error and can be continued.

    Example: batchserve cluster stop
    """
    from batchserve import console
    from batchserve.cluster import named

    named.stop(name)
    console.Screen().say(f"cluster {name}: stopped")
