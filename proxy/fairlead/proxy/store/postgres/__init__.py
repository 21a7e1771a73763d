"""The store in PostgreSQL, which several proxies share. Only this folder imports psycopg."""
