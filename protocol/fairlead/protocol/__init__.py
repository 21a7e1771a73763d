"""The language that a proxy, its nodes and its client links speak. Sans-io throughout.

Ten words of the project:

* **client**: a game or app at the outer edge; **session**: one client's connection.
* **proxy**: terminates clients; **node** (backend): serves them and executes commands.
* **link**: a node's connection to a proxy; **channel**: the sans-io state behind a link.
* **command**: a descriptor in the registry; **run**: one requested execution on one target;
  **attempt**: one delivery of a run.
* **generation**: the registry's monotone number; **digest**: what both ends compare.

Nothing in this package reads a clock, a file, a socket or a source of randomness: time and
entropy are arguments. The rule is a test (`tests/test_architecture.py`).
"""
