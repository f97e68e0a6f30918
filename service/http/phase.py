"""The phases of a connection. A connection is in exactly one phase at any time.

                +------------ the response is complete; the connection stays open ------------+
                v                                                                             |
connected --> IDLE --first byte--> HEAD --blank line--+--> BODY --------last byte---> RESPONSE
                                                      |    (path of an endpoint)              |
                                                      +--> APP_BODY ----last byte---> APP_RESPONSE
                                                           (any other request)

HEAD, BODY, APP_BODY --invalid, too large, or not complete within request_timeout--> REFUSED
REFUSED --the client had time to read the error response--> CLOSED
IDLE, or the client does not read its responses --idle_timeout--> CLOSED
RESPONSE, APP_RESPONSE --no other response may follow--> CLOSED
any phase --the client disconnects--> CLOSED
"""

from __future__ import annotations

from enum import Enum


class Phase(Enum):
    """The state of a connection."""

    IDLE = "between two requests"
    HEAD = "reads a head"
    BODY = "reads the body of a request for an endpoint"
    RESPONSE = "waits for the reply of an endpoint"
    APP_BODY = "forwards the body of a request; the response may have begun"
    APP_RESPONSE = "waits for the end of the inner protocol's response"
    REFUSED = "has sent an error response; drops all further bytes"
    CLOSED = "closes after the last response is written"


# The phases are also module variables, because Python takes longer to look up an attribute of an enum.
IDLE, HEAD, BODY, RESPONSE, APP_BODY, APP_RESPONSE, REFUSED, CLOSED = Phase
RECEIVING = (HEAD, BODY, APP_BODY)
READING = (IDLE, *RECEIVING)
