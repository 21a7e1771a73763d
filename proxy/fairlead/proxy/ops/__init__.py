"""The operators' surface: one table of endpoints, from which routing, authorization and OpenAPI are read."""
