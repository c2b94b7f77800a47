"""`python -m vlatrack` is the program `vlatrack`."""

from vlatrack.cli.main import main

if __name__ == "__main__":
    main()
