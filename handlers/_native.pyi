from handlers.native_twin import Poller as Poller
from handlers.native_twin import send_all as send_all
