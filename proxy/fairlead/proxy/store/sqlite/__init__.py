"""The store in one SQLite file, through its single writer."""
