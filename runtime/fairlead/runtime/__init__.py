"""What both ends need from the world: time, bytes, disk, HTTP, metrics, logs, configuration.

Stands beside the three journeys, not on them. `protocol` never imports it; `backend` and `proxy` do.
Everything here that touches the outside goes through `world.World`, so that a whole cluster can run in
one process in virtual time.
"""
