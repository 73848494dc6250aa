"""On an operator's own computer: cards, identities, updates and the broker's configuration. Imports ``wire`` only, never torch."""
