"""``python -m rwkvkit``."""

from rwkvkit.cli import main

if __name__ == "__main__":
    main()
