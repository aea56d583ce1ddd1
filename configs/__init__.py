"""YAML files of the runs, and `loader`, the one module that reads them."""
