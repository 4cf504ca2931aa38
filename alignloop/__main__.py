"""`python -m alignloop` is `alignloop`."""

from alignloop.cli.app import main

if __name__ == "__main__":
    main()
