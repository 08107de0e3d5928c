"""`python -m ipvrm_lightning`: the same as `ipvrm`."""

from ipvrm_lightning.cli import main

if __name__ == "__main__":
    main()
