"""How the names of models and data sets become files on this machine."""
