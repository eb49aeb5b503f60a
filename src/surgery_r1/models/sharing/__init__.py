"""Each frame is computed once: prefix tree, its attention, prefill, kept vision features."""
