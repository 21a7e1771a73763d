"""The node's gate: in front of an unmodified local server, it lets pass what a proxy of the fleet sends."""
