"""Reports as documents: what was measured, in sections of text, tables and figures, for HTML and Markdown alike."""
