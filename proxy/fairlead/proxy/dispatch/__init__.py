"""The command's journey on the proxy: submission -> acceptance -> delivery -> report -> caller.

`submit` (what is asked, and may it be) -> `fleet` (who has room) -> `dispatcher` (store first, then the wire).
"""
