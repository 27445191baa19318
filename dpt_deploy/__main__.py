"""`python -m dpt_deploy COMMAND`: the same as `dpt COMMAND`."""

from .cli.commands import main

if __name__ == "__main__":
    main()
