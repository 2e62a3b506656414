"""Peers: scripts that a Python of their own runs, and the little that both sides of a race must share.

Nothing here may import `lit_align`: it is not installed where the peers live.
"""
