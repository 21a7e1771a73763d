"""Nodes and the command registry: the registry's journey, and the links that commands travel on.

listen -> admission -> link -> nodes (who is there) and registry -> sync (what each node must be told) -> link.
"""
