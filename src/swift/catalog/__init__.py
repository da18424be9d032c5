"""The directory in the entrance hall: every name that can be chosen, as data."""
