"""Guards in front of the HTTP surface: who calls, whether the call is whole and new, how often, and what they may.

In the order of the journey: `credentials`, `operator_keys`, `tokens` (with `key_set`, `jwks`) -> `callers` -> `access`.
"""
