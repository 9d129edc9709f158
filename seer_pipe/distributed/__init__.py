"""The processes of a run, and what they send each other. Knows no room above it."""
