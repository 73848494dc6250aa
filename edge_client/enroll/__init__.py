"""A device's place in the fleet: its key is made here and stays here; the certificate for it is fetched once and then renewed."""
