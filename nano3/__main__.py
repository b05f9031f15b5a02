"""`python -m nano3` and `torchrun -m nano3`: the same as the `nano3` command."""

from nano3.cli.app import main

if __name__ == "__main__":
    main()
