"""The command line: one module per command group. Only this package reads the environment, prints and draws."""
