"""The agent of a device: starts the client and watches it, takes releases from the operator, and goes back where one does not prove itself.

It runs from what the device was set up with, and no release changes it (docs/adr/0014-the-agent-is-never-updated.md).
"""
