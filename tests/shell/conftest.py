"""Fixtures of the store's contract, known to every file of it."""

from tests.support.store_contract import contract_database, open_store, postgres_url, store, store_kind

__all__ = ["contract_database", "open_store", "postgres_url", "store", "store_kind"]
