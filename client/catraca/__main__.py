"""`python -m catraca` is the `catraca` command."""

from catraca.cli import main

if __name__ == "__main__":
    main()
