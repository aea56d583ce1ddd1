"""Documents: made from a source, filtered, brought into their final place."""
