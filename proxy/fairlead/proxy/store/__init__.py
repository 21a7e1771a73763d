"""The durable truth: one interface in domain words (`interface`), one implementation per database.

Stands in the middle of the command's journey: nothing is told to a caller or a node that is not here first.
Knows SQL and nothing of HTTP or channels.
"""
