"""What ranks send each other: collectives, and the account of them. Knows no room above it."""
