"""The operator's computer: who belongs to the fleet, and the configuration of its broker. Imports ``wire`` only, never torch."""
