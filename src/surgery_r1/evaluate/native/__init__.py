"""Any vision-language model as it comes: asked in its own words, its boxes in its own format, zero-shot or few-shot."""
