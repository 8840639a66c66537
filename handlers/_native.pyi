# The extension has the types of its twin.
from handlers.native_twin import Line as Line
from handlers.native_twin import Poller as Poller
from handlers.native_twin import Recipient as Recipient
from handlers.native_twin import Recipients as Recipients
from handlers.native_twin import send_all as send_all
