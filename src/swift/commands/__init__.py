"""The commands: how the parts are put together."""
