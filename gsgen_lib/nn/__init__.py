"""Blocks of networks that several systems share. A block knows tensors, not scenes."""
