"""The operator's side of updates: releases made, signed and kept, and the conversation with the devices' agents."""
