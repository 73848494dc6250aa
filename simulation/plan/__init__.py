"""``cutlayer plan``: every place where a model can be cut, with what a client there computes, sends, spends and gives away."""
