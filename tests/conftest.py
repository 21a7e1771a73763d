"""Fixtures that every test may ask for; each is made only when one does."""

from tests.support.postgres import database_url, postgres, postgres_server

__all__ = ["database_url", "postgres", "postgres_server"]
