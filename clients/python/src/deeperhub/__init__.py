"""Client for deeperhub, the realtime hub: messages exactly once and in order."""

from .errors import HubError
from .hub import Hub
from .subscription import Subscription
from .types import (
    Gap,
    History,
    HubState,
    HubStateName,
    Message,
    Position,
    Published,
    Storage,
    SubscriptionState,
    SubscriptionStateName,
    Token,
)

__all__ = [
    "Gap",
    "History",
    "Hub",
    "HubError",
    "HubState",
    "HubStateName",
    "Message",
    "Position",
    "Published",
    "Storage",
    "Subscription",
    "SubscriptionState",
    "SubscriptionStateName",
    "Token",
]
