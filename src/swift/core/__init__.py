"""The ground floor: errors, registries, the environment, the log."""
