"""`python -m tokenservice.app --config FILE [--kubeconfig FILE]`: the operator process."""

from __future__ import annotations

import argparse
import sys

from tokenservice.app.runtime import Options, run


def main(arguments: list[str] | None = None) -> int:
    """Parses the command line and runs."""
    parser = argparse.ArgumentParser(prog="python -m tokenservice.app", description="Run the operator.")
    parser.add_argument("--config", help="settings (YAML); default: all defaults")
    parser.add_argument("--kubeconfig", help="default: the ServiceAccount of the pod this runs in")
    parser.add_argument("--context", help="context of the kubeconfig; default: its current one")
    chosen = parser.parse_args(arguments)
    return run(Options(kubeconfig=chosen.kubeconfig, context=chosen.context, config=chosen.config))


if __name__ == "__main__":
    sys.exit(main())
