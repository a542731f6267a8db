"""``python -m harness.cli``: the same command where no script is installed."""

from harness.cli import app

if __name__ == "__main__":
    app()
