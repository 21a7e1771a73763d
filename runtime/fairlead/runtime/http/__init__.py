"""HTTP/1.1: reading heads and bodies strictly, and a small server for what Fairlead itself answers.

`framing`, `head`, `body` and `message` are pure and shared with the proxy's edge; `server` is the shell
that serves the operators' port, a node's health port and the sample app.
"""
