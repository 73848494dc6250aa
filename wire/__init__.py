"""What both ends of a cut must agree on: graph, frames, codecs, actor, topics, transport.

Entry test for this room: "would the two ends disagree if their copies differed?" It imports none of the other rooms, and neither torch
nor onnx.
"""
