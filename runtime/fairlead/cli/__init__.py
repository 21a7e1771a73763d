"""The `fairlead` command: above everything, imported by nothing. Each verb imports only what it needs."""
