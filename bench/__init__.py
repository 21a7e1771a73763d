"""`make bench`: starts the real processes and measures what the README claims.

Figures depend on the machine; ratios within one run are what to compare. Everything is on loopback, bounded in
count and in time, and ends by itself.
"""
