"""``cutlayer flash``: an image, a card, a computer in reach or a compose project that becomes a training device at its first start."""
