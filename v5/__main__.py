"""The front door: `v5 COMMAND`, also `python -m v5 COMMAND`."""

from __future__ import annotations

import sys

import click

from registry.errors import V5Error
from registry.processes import collect_rarely, keep_freed_memory
from v5.commands import FrontDoor


@click.group(cls=FrontDoor, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="v5-embedding-fleet", prog_name="v5")
def v5() -> None:
    """Index corpora with several embedding models at once into named vectors in Qdrant.

    \b
    Start here:
      v5 quickstart
    Or step by step:
      v5 up --primary qdrant-minilm-onnx --companion all-miniLM-l6
      v5 submit src/ --collection code
      v5 search "parse a date" --collection code
      v5 down

    Exit codes: 0 done, 1 failed, 2 usage, 3 done with dead letters. Settings come from V5_* in the
    environment or in .env; V5_DATA_DIR says where a local fleet keeps everything.
    """


def main() -> None:
    """Run a command; an error on purpose becomes one line and its exit code."""
    collect_rarely()
    keep_freed_memory()
    try:
        v5(standalone_mode=False)
    except click.exceptions.Exit as ended:
        sys.exit(ended.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        sys.exit(130)
    except V5Error as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)


if __name__ == "__main__":
    main()
