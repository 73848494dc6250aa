"""What the operator and the devices of a fleet say to each other, apart from any run: releases and their transport, and how a device is."""
