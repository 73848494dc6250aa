"""Is this board fit? Each file holds one check: what is so, and what to do about it.

Importing this loads nothing but the standard library and ``wire``'s plain modules: a package that is wrong for the board would take the
doctor with it, so each is tried in a process of its own first (``child``, ``probe``).
"""

from edge_client.doctor.device import DeviceDoctor, run_doctor

__all__ = ["DeviceDoctor", "run_doctor"]
