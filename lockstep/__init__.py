"""The middle of Lockstep: rules, sessions and the hub. It knows neither Tornado nor Redis."""

__version__ = "0.6.0"
