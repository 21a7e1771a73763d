"""Serving clients on several cores: the main process accepts and judges, worker processes serve."""
