"""Rolling out: for whom the guards of dispatch are enforced, what is switched on for whom, and what stops it all."""
