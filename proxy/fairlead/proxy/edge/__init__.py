"""Client bytes: accept -> limits -> HTTP head -> route -> connect -> relay -> count.

`listen.Edge` ties it together. Pure: `routing`, `admission`, `forward_headers`, the pool's decisions.
Shell: `connect`, `http` and its `exchange`, `tcp` with its `relay`.
"""
