"""``python -m cnnbench`` and the script ``cnnbench`` are `cnnbench.cli.main`."""

import sys


def main() -> int:
    """Run the command of this process; Ctrl-C ends it in one line also while its modules are imported."""
    try:
        # Imported here, where an interruption is caught.
        from cnnbench.cli import main as run
    except KeyboardInterrupt:
        print("cnnbench: stopped by SIGINT; nothing was kept; start it again", file=sys.stderr)
        return 130
    return run()


if __name__ == "__main__":
    sys.exit(main())
