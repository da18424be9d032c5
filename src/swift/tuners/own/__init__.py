"""Methods that no library brings: new layers, bottlenecks, edits of representations, shifted attention."""
