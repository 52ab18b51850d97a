"""How the hosts of a cluster talk: signed HTTP/1.1, or the same inside TLS.

`auth` says what is protected, and from whom.
"""

from gdist.exchange.addresses import EVERYONE, Allow, format_address, parse_address
from gdist.exchange.channel import Meter
from gdist.exchange.client import Client
from gdist.exchange.key import Key
from gdist.exchange.limiter import Limiter
from gdist.exchange.messages import Answer, FileExtents, FileRun, Handler, Request, Response
from gdist.exchange.server import Limits, Server

__all__ = [
    "EVERYONE",
    "Allow",
    "Answer",
    "Client",
    "FileExtents",
    "FileRun",
    "Handler",
    "Key",
    "Limiter",
    "Limits",
    "Meter",
    "Request",
    "Response",
    "Server",
    "format_address",
    "parse_address",
]
