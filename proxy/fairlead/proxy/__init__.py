"""The proxy: clients come in at the edge, commands through dispatch, nodes through control. `app` joins them."""
