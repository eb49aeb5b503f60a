"""What goes wrong with most runs, looked for in a minute before one starts: ``surgery-r1 doctor``."""
