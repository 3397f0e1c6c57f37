"""`python -m vitsearch`, and the console script: the command line."""

from orchestrator.cli.main import main

if __name__ == "__main__":
    main()
