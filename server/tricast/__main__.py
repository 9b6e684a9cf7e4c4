"""``python -m tricast`` is the ``tricast`` command."""

from tricast.cli import main

if __name__ == "__main__":
    main()
