"""Real brokers for tests, each a context manager: mosquitto plain, with TLS, passwords or an access list; and the embedded one.

What they yield can be killed and started again on the same port.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import ipaddress
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path


from server.broker import BrokerProcess, start_broker
from wire.transport.broker_config import BrokerConfig

__all__ = ["TestBroker", "Authority", "embedded", "mosquitto", "mosquitto_acl", "mosquitto_password", "mosquitto_tls"]
