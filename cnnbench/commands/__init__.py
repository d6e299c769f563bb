"""The subcommands of ``cnnbench``, one module each. `cnnbench.cli.COMMANDS` says what such a module defines."""
