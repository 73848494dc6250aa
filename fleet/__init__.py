"""What an operator does on their own computer: cards, identities and updates of the devices. Imports ``wire`` and no other room."""
